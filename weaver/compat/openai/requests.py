"""The JSON bodies of OpenAI's endpoints, with the fields of vLLM and SGLang that their clients send along.

Every field is honoured, refused by name, or one that changes nothing of what is computed. `null` is the same as absent.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from weaver.compat.openai.errors import FieldRefused
from weaver.compat.tinker.requests import field_path, refused, sentence

MOST_CHOICES = 128
MOST_LIKELIEST = 20
COMPLETION_TOKENS = 16
"""What OpenAI's completions draw where `max_tokens` is not given."""

_NOT_HERE = "this server has nothing of the kind; leave it out"
_PENALTY = "this server draws from the model's own distribution, without penalties; leave it out"
_STOP_KINDS = "must be a string or a list of strings that are not empty"

Harmless = Any
"""A field that changes nothing of the computation."""
TokenIds = list[Annotated[int, Field(ge=0, lt=2**31)]]


def _stop_list(value: Any) -> Any:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(one, str) and one for one in strings):
        raise PydanticCustomError("refused", _STOP_KINDS)
    return strings


def _count(value: Any) -> Any:
    """As vLLM reads it: true is 1."""
    if isinstance(value, bool):
        return 1 if value else None
    return value


class Body(BaseModel):
    """Every field is read, or the body is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, raw: Any) -> Any:
        return {key: value for key, value in raw.items() if value is not None} if isinstance(raw, dict) else raw


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Annotated[bool, refused("answers are not padded here", False)] = False


class Sampled(Body):
    """What both endpoints read."""

    model: str
    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=-1, ge=-1, lt=2**31)
    seed: int | None = Field(default=None, ge=0, lt=2**64)
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    min_tokens: int = Field(default=0, ge=0, lt=2**31)
    stop: Annotated[list[str], BeforeValidator(_stop_list, json_schema_input_type=str | list[str])] = []
    stop_token_ids: TokenIds = []
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None

    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    no_stop_trim: bool = False
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False

    presence_penalty: Annotated[float, refused(_PENALTY, 0, 0.0)] = 0.0
    frequency_penalty: Annotated[float, refused(_PENALTY, 0, 0.0)] = 0.0
    repetition_penalty: Annotated[float, refused(_PENALTY, 1, 1.0)] = 1.0
    logit_bias: Annotated[dict[str, float], refused(_PENALTY, {})] = {}
    min_p: Annotated[float, refused("this server cuts off by top_k and top_p only", 0, 0.0)] = 0.0

    user: Harmless = None
    metadata: Harmless = None
    safety_identifier: Harmless = None
    prompt_cache_key: Harmless = None
    prompt_cache_retention: Harmless = None
    store: Annotated[bool, refused("nothing is stored here", False)] = False
    service_tier: Annotated[str, refused("there is one tier here", "auto", "default")] = "auto"

    @property
    def keeps_stop(self) -> bool:
        """Whether the text has what ended it."""
        return self.include_stop_str_in_output or self.no_stop_trim

    @property
    def tells_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class Function(Body):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[bool, refused("arguments are not held to the schema while they are drawn", False)] = False


class Tool(Body):
    type: Annotated[str, refused("this server knows functions only", "function")]
    function: Function


class CalledFunction(Body):
    name: str
    arguments: str | dict[str, Any] = "{}"


class PastCall(Body):
    """A tool call of an earlier turn."""

    id: str | None = None
    type: Annotated[str, refused("this server knows functions only", "function")] = "function"
    function: CalledFunction
    index: int | None = None


class TextPart(Body):
    type: Annotated[str, refused("this server reads text only", "text")]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[PastCall] = []
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: Annotated[Any, refused(_NOT_HERE)] = None
    audio: Annotated[Any, refused(_NOT_HERE)] = None
    function_call: Annotated[Any, refused("it gave way to tool_calls; send those")] = None
    annotations: Annotated[list[Any], refused(_NOT_HERE, [])] = []

    @model_validator(mode="after")
    def _is_of_its_role(self) -> "Message":
        """A field of another role would reach no template."""
        if self.role != "assistant" and (self.tool_calls or self.reasoning_content or self.reasoning):
            raise _wrong("tool_calls and reasoning_content belong to the role 'assistant'")
        if self.role != "tool" and self.tool_call_id is not None:
            raise _wrong("tool_call_id belongs to the role 'tool'")
        if self.reasoning_content and self.reasoning and self.reasoning_content != self.reasoning:
            raise _wrong("reasoning_content and reasoning are the same thing, and differ")
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.thoughts)):
            raise _wrong("content is missing")
        return self

    @property
    def thoughts(self) -> str:
        return self.reasoning_content or self.reasoning or ""

    @property
    def text(self) -> str:
        """The content. Parts are joined by line breaks."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content or ())


class ResponseFormat(Body):
    type: Annotated[str, refused("this server does not hold a model to a format; ask for it in the prompt", "text")]


_UNFORCED = "this server cannot force a call; give 'auto' or 'none'"


class ChatCompletion(Sampled):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    tools: list[Tool] = []
    tool_choice: Annotated[str | None, refused(_UNFORCED, "auto", "none")] = None
    parallel_tool_calls: Annotated[bool, refused("this server cannot keep a model to one call", True)] = True
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LIKELIEST)
    chat_template_kwargs: dict[str, Any] = {}

    response_format: ResponseFormat | None = None
    modalities: Annotated[list[str], refused("this server writes text only", ["text"])] = ["text"]
    reasoning_effort: Annotated[Any, refused("what a model's template offers is set by chat_template_kwargs")] = None
    verbosity: Annotated[Any, refused(_NOT_HERE)] = None
    audio: Annotated[Any, refused(_NOT_HERE)] = None
    prediction: Annotated[Any, refused(_NOT_HERE)] = None
    web_search_options: Annotated[Any, refused(_NOT_HERE)] = None
    functions: Annotated[Any, refused("it gave way to tools; send those")] = None
    function_call: Annotated[Any, refused("it gave way to tool_choice; send that")] = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "ChatCompletion":
        if self.top_logprobs is not None and not self.logprobs:
            raise _wrong("top_logprobs is about logprobs; set that to true too")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise _wrong("max_tokens and max_completion_tokens are the same thing, and differ; give one")
        return self

    @property
    def most_tokens(self) -> int | None:
        """None: all that fits."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def likeliest(self) -> int:
        return self.top_logprobs or 0

    @property
    def shown_tools(self) -> list[dict[str, Any]]:
        """What the template is given. With `tool_choice` "none" the model sees no tools, and its text is not parsed."""
        return [] if self.tool_choice == "none" else [tool.model_dump(exclude_unset=True) for tool in self.tools]


class Completion(Sampled):
    prompt: str | TokenIds | list[str] | list[TokenIds]
    logprobs: Annotated[
        Annotated[int, Field(ge=0, le=MOST_LIKELIEST)] | None,
        BeforeValidator(_count, json_schema_input_type=int | bool | None),
    ] = None

    echo: Annotated[bool, refused("prompts are not repeated here", False)] = False
    suffix: Annotated[Any, refused(_NOT_HERE)] = None
    best_of: Annotated[int, refused("every sample is a choice here; give n", 1)] = 1

    @property
    def most_tokens(self) -> int:
        return COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def likeliest(self) -> int:
        return self.logprobs or 0

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or more texts, or token ids of one or more."""
        whole = isinstance(self.prompt, str) or (bool(self.prompt) and isinstance(self.prompt[0], int))
        return [self.prompt] if whole else list(self.prompt)  # type: ignore[list-item, arg-type]


Asked = TypeVar("Asked", bound=Body)


def parse(model: type[Asked], raw: object) -> Asked:
    """The checked body. Raises FieldRefused with a sentence for every field at fault."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False)
        told = "; ".join(dict.fromkeys(sentence(detail) for detail in details[:8]))
        raise FieldRefused(told, field_path(details[0]["loc"]) or None) from None


def _wrong(why: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{sentence}", {"sentence": why})
