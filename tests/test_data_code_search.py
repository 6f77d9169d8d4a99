import ast
import textwrap

import pytest

from rerank.data import read_code
from rerank.data.code_search import MAX_CHARACTERS, first_sentence
from rerank.errors import InputError, NotFound

MODULE = '''
import os


class Shelf:
    def take(self, n):
        """Return the ``n`` topmost books.  The rest
        stays."""
        # why: a comment stays
        books = self.books[:n]

        self.books = self.books[n:]
        return books

    @staticmethod
    def label(book):
        r"""Write the label of one book."""
        text = book.title
        text = text.strip()
        return text


if os.name:
    async def late(book):
        """Tell whether a book is late.

        Not this.
        """
        def inner(x):
            """Never a document of its own."""
            return x
        return inner(book)


def short(x):
    """This body is far too short."""
    return x


def few(x):
    """Too few words."""
    x += 1
    x += 1
    return x


def same(book):
    """Tell whether a book is late."""
    a = book
    b = a
    return b
'''


@pytest.fixture
def folder(tmp_path):
    for name, text in {
        "pkg/__init__.py": "",
        "pkg/shelf.py": MODULE,
        "tests/test_it.py": MODULE,
        "bad.py": "def (:",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_functions_methods_and_coroutines_become_pairs_and_the_rest_does_not(folder, caplog):
    code = read_code(folder)
    assert code.queries == {
        "q:pkg.shelf.Shelf.take": "Return the n topmost books.",
        "q:pkg.shelf.Shelf.label": "Write the label of one book.",
        "q:pkg.shelf.late": "Tell whether a book is late.",
    }
    assert code.qrels == {q: {q[2:]: 1} for q in code.queries}
    assert "1 files are not Python" in caplog.text


def test_a_document_is_the_source_without_its_docstring(folder):
    expected = """\
        def take(self, n):
            # why: a comment stays
            books = self.books[:n]

            self.books = self.books[n:]
            return books"""
    documents = read_code(folder).documents
    assert documents["pkg.shelf.Shelf.take"] == textwrap.dedent(expected)
    assert documents["pkg.shelf.Shelf.label"].startswith("@staticmethod\ndef label(book):\n    text")


def test_the_standard_library_gives_some_thousand_pairs_none_of_which_holds_its_own_answer():
    code = read_code()
    assert 2_500 < len(code.queries) < 4_500
    assert len(set(code.queries.values())) == len(code.queries) == len(set(code.documents.values()))
    assert max(map(len, code.documents.values())) <= MAX_CHARACTERS
    whole = {d: text for d, text in code.documents.items() if len(text) < MAX_CHARACTERS * 0.8}
    assert all(ast.get_docstring(ast.parse(text).body[0]) is None for text in whole.values())


def test_the_splits_are_disjoint_whole_and_share_the_documents():
    whole, train, test = read_code(), read_code(split="train"), read_code(split="test")
    assert train.queries | test.queries == whole.queries and not train.queries.keys() & test.queries.keys()
    assert 0.17 < len(test.queries) / len(whole.queries) < 0.23
    assert train.documents is test.documents and test.qrels.keys() == test.queries.keys()


def test_a_query_stays_on_its_side_when_functions_come_and_go(folder):
    before = read_code(folder, "train").queries.keys()
    (folder / "more.py").write_text(MODULE.replace("books", "records").replace("book", "record"))
    after = read_code(folder)
    assert len(after.queries) > 3
    assert read_code(folder, "train").queries.keys() & {q for q in after.queries if "shelf" in q} == before


def test_a_long_document_is_cut_at_the_end_of_a_line(tmp_path):
    body = "".join(f"    x{i} = {i}\n" for i in range(500))
    (tmp_path / "long.py").write_text(f'def long():\n    """Set a great many names."""\n{body}')
    (text,) = read_code(tmp_path).documents.values()
    assert MAX_CHARACTERS - 20 < len(text) <= MAX_CHARACTERS
    assert text.splitlines()[-1] in body.splitlines()


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [("One. Two.", "One."), ("One\ntwo\n\nThree.", "One two"), ("Is it 3.5? Yes", "Is it 3.5?"), ("", "")],
)
def test_the_first_sentence_ends_at_a_stop_or_a_paragraph(docstring, sentence):
    assert first_sentence(docstring) == sentence


def test_a_wrong_split_folder_or_a_folder_without_pairs_is_refused(tmp_path):
    with pytest.raises(InputError, match="did you mean 'test'"):
        read_code(split="tests")
    with pytest.raises(NotFound):
        read_code(tmp_path / "none")
    with pytest.raises(InputError, match="0 Python files"):
        read_code(tmp_path)
