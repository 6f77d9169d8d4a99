"""The OpenAPI document: every path is in it, every reference resolves, every example is one that is really answered."""

import pytest
from pydantic import TypeAdapter

from rerank.serving.wire.dialects import COHERE, DIALECTS, ROUTES, TEI, asked
from rerank.serving.wire.openapi import REFUSALS, openapi

DOCUMENT = openapi()


def references(value):
    if isinstance(value, dict):
        yield from [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        value = list(value.values())
    for item in value if isinstance(value, list) else []:
        yield from references(item)


def test_every_reference_of_the_openapi_document_resolves():
    assert DOCUMENT["openapi"].startswith("3.1.")
    found = set(references(DOCUMENT))
    assert len(found) > 20
    for reference in found:
        at = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]
    defined = {
        f"#/components/{kind}/{name}" for kind in ("schemas", "responses") for name in DOCUMENT["components"][kind]
    }
    assert found == defined


def test_every_path_that_is_served_is_described_with_its_refusals():
    assert set(ROUTES) == {path for path, item in DOCUMENT["paths"].items() if "post" in item}
    for path in ROUTES:
        assert {int(status) for status in DOCUMENT["paths"][path]["post"]["responses"]} == {200, *REFUSALS}


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_every_example_is_read_by_the_model_and_answered_in_the_type_that_describe_it(path):
    item = DOCUMENT["paths"][path]["post"]
    asking = item["requestBody"]["content"]["application/json"]
    answering = item["responses"]["200"]["content"]["application/json"]
    assert set(asking["examples"]) == set(answering["examples"])
    for name, example in asking["examples"].items():
        dialect = {one.name: one for one in DIALECTS}[name]
        found = asked(path, example["value"])
        assert found.questions[0].warnings == ()
        assert set(example["value"]) <= set(DOCUMENT["components"]["schemas"][dialect.request.__name__]["properties"])
        shown = answering["examples"][name]["value"]
        TypeAdapter(dialect.response).validate_python(shown, strict=True)
    assert set(asking["examples"]) == ({COHERE.name, TEI.name} if path == "/rerank" else {dialect.name})
