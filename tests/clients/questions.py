"""What the clients ask: name -> (model, query, documents). Every text is one that a real collection could hold."""

from __future__ import annotations

FEW = [
    "read the lines of a file",
    "a cup of tea",
    "csv.reader(file) gives the rows",
    "a cup of tea",  # twice: equal scores keep the order in which the documents came
    "pandas.read_csv reads a CSV file into a data frame",
    "Faust. Eine Tragödie",
]
UNICODE = [
    "اقرأ ملف CSV في بايثون",  # right to left
    "שָׁלוֹם עוֹלָם",  # right to left, with points
    "caf\u00e9",
    "cafe\u0301",  # the same to the eye, other characters
    "👩\u200d👩\u200d👧\u200d👦 reads 📄 \U0001f1fa\U0001f1f3",
    "Z\u0351\u036b\u0343a\u0300\u0301\u0302l\u0334g\u0335o\u0336",
    "如何读取 CSV 文件",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 beyond the first plane",  # noqa: RUF001 - meant
    "tab\there, line\nbreak, carriage\r\nreturn, \u2028 and \u2029, bell \x07, escape \x1b[31m",
    "\ufeffa byte order mark, \u200b no width, \u202e and the other way",
    "a [SEP] b </s> <|im_end|> [3] \\n \" ' {} %s ${x}",
]
HUNDRED = [f"document {i}: " + f"{i * 7919 % 101} of {i % 9} words, " * (1 + i % 12) for i in range(100)]
LONG = ["beyond what the model reads, " * 60, "short", "another long text. " * 200]
BLANK = ["", "a text", "  "]
QUERY = "how do I read a csv file"

QUESTIONS: dict[str, tuple[str, str, list[str]]] = {
    "few": ("tiny", QUERY, FEW),
    "few, other model": ("other", QUERY, FEW),
    "one": ("tiny", QUERY, ["the only document"]),
    "unicode": ("tiny", "где прочитать файл? 📄 e\u0301", UNICODE),
    "hundred": ("tiny", "which document has 42 words", HUNDRED),
    "blank": ("tiny", QUERY, BLANK),
    "long": ("tiny", QUERY, LONG),
}
