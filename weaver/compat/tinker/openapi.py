"""What the routes read, told in the OpenAPI document. They read bodies by hand, so FastAPI cannot know by itself."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

JSON, PROTOBUF = "application/json", "application/x-protobuf"
_NESTED: Final = "#/components/schemas/{model}"

REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {
        "description": "Refused, and nothing has changed: `detail` names the field and says what to do.",
        "content": {JSON: {"schema": {"type": "object", "required": ["detail"], "properties": {"detail": {}}}}},
    }
}
REFUSALS["4XX"]["content"][JSON]["schema"]["properties"]["detail"] = {"type": "string", "minLength": 1}


def reads(*models: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route whose JSON body is one of these models."""
    schemas = [model.model_json_schema(ref_template=_NESTED) for model in models]
    return _body({JSON: schemas[0] if len(schemas) == 1 else {"anyOf": schemas}})


def reads_protobuf(name: str, *models: type[BaseModel]) -> dict[str, Any]:
    """Of one whose body is this protobuf message, or a JSON object like one of these models."""
    message = {"type": "string", "format": "binary", "description": f"The protobuf message {name}, raw or as zstd"}
    as_json = reads(*models)["requestBody"]["content"] if models else {}
    return _body({PROTOBUF: message} | {kind: content["schema"] for kind, content in as_json.items()})


READS_ANYTHING: Final = {"requestBody": {"required": False, "content": {JSON: {"schema": {}}}}}
"""Of one that takes a body and does not look into it."""


def _body(schemas: Mapping[str, Any]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the application, with the models inside bodies where references look for them."""
    told = get_openapi(title=app.title, version=app.version, routes=app.routes)
    nested = told.setdefault("components", {}).setdefault("schemas", {})
    for schema in _body_schemas(told):
        for one in (schema, *schema.get("anyOf", ())):
            nested.update(one.pop("$defs", {}))
    return told


def _body_schemas(told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in told["paths"].values():
        for operation in methods.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                yield content["schema"]
