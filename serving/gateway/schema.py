"""What requests may hold: OpenAI's fields as this server takes them, and not one more.

Bounds that depend on the server's settings are in `serving.gateway.bounds`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from serving.gateway import errors

Request = TypeVar("Request")
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
ShortText = Annotated[str, Field(max_length=512)]
Positive = Annotated[int, Field(gt=0)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Part(BaseModel):
    """Unknown fields are errors, numbers are finite, and nothing is converted on the quiet."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _shape(value: Any) -> str | None:
    """Which of several shapes a field has, so that its errors speak of that one."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        first = value[0] if value else None
        if isinstance(first, list):
            return "lists"
        return "numbers" if isinstance(first, int) and not isinstance(first, bool) else "list"
    return "object" if isinstance(value, (dict, BaseModel)) else None


def _choice(expected: str) -> Discriminator:
    return Discriminator(_shape, custom_error_type="shape", custom_error_message=f"expected {expected}")


class TextPart(Part):
    type: Literal["text"]
    text: str


class Url(Part):
    url: Annotated[str, Field(min_length=1)]


class ImageUrl(Url):
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Part):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoPart(Part):
    type: Literal["video_url"]
    video_url: Url


class AudioPart(Part):
    type: Literal["audio_url"]
    audio_url: Url


class InputAudio(Part):
    data: Annotated[str, Field(min_length=1)]  # base64
    format: Literal["wav", "mp3", "flac", "ogg"]


class InputAudioPart(Part):
    type: Literal["input_audio"]
    input_audio: InputAudio


ContentPart = Annotated[
    TextPart | ImagePart | VideoPart | AudioPart | InputAudioPart, Field(discriminator="type")
]
Content = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[ContentPart], Field(min_length=1, fail_fast=True), Tag("list")],
    _choice("text or a list of parts"),
]
TextContent = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[TextPart], Field(min_length=1, fail_fast=True), Tag("list")],
    _choice("text or a list of text parts"),
]


class Spoken(Part):
    """What all messages share. lm-eval marks whole messages as text; no engine needs to know."""

    type: Annotated[Literal["text"] | None, Field(exclude=True)] = None


class SystemMessage(Spoken):
    role: Literal["system", "developer"]
    content: TextContent
    name: ShortText | None = None


class UserMessage(Spoken):
    role: Literal["user"]
    content: Content
    name: ShortText | None = None


class FunctionCall(Part):
    name: Name
    arguments: str


class ToolCall(Part):
    id: ShortText
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(Spoken):
    role: Literal["assistant"]
    content: TextContent | None = None
    refusal: str | None = None
    name: ShortText | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty_fields(cls, given: Any) -> Any:
        """Clients send answers back with every field of theirs, most of them null."""
        return {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls and self.refusal is None:
            raise ValueError("an assistant's message needs content or tool_calls")
        return self


class ToolMessage(Spoken):
    role: Literal["tool"]
    content: TextContent
    tool_call_id: ShortText


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Part):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Part):
    type: Literal["function"]
    function: Function


class FunctionName(Part):
    name: Name


class NamedTool(Part):
    type: Literal["function"]
    function: FunctionName


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("text")] | Annotated[NamedTool, Tag("object")],
    _choice("none, auto, required or a named function"),
]


class TextFormat(Part):
    type: Literal["text"]


class JsonFormat(Part):
    type: Literal["json_object"]


class NamedSchema(Part):
    name: Name
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(Part):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]
Stop = Annotated[
    Annotated[str, Field(min_length=1), Tag("text")]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True), Tag("list")],
    _choice("text or a list of texts"),
]


class StreamOptions(Part):
    include_usage: bool | None = None


class Sampling(Part):
    """What chats and completions share."""

    model: Annotated[str, Field(min_length=1)]
    max_tokens: Positive | None = None
    n: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: ShortText | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream: true")
        return self


class ChatRequest(Sampling):
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    plumbline: dict[str, Any] | None = None  # inference-time selection, or a version

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs: true")
        names = {tool.function.name for tool in self.tools or ()}
        if self.tool_choice not in (None, "none") and not names:
            raise ValueError("tool_choice: there are no tools to choose from; add tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(
                f"tool_choice: expected one of the tools, got {errors.shown(self.tool_choice.function.name)}"
            )
        return self


Prompts = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[Texts, Tag("list")]
    | Annotated[Tokens, Tag("numbers")]
    | Annotated[list[Tokens], Field(fail_fast=True), Tag("lists")],
    _choice("text, token ids, or a list of either"),
]


class CompletionRequest(Sampling):
    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0)] | None = None  # 0: the prompt's log-probabilities alone
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _asks_for_something(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 only with echo: true, for there is nothing else to answer")
        return self


class EmbeddingRequest(Part):
    model: Annotated[str, Field(min_length=1)]
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    user: ShortText | None = None


AnswerId = Annotated[str, Field(pattern=r"^chatcmpl-[0-9a-f]{32}$")]
Comment = Annotated[str, Field(max_length=4000)]


class Rating(Part):
    kind: Literal["rating"]
    id: AnswerId
    rating: Literal[-1, 1]
    comment: Comment | None = None


class Pairwise(Part):
    kind: Literal["choice"]
    chosen: AnswerId
    rejected: AnswerId
    comment: Comment | None = None

    @model_validator(mode="after")
    def _two_answers(self) -> Pairwise:
        if self.chosen == self.rejected:
            raise ValueError("rejected: expected another answer than chosen")
        return self


class Correction(Part):
    kind: Literal["correction"]
    id: AnswerId
    correction: Annotated[str, Field(min_length=1)]
    comment: Comment | None = None


FeedbackRequest = Annotated[Rating | Pairwise | Correction, Field(discriminator="kind")]

CHAT: TypeAdapter[ChatRequest] = TypeAdapter(ChatRequest)
COMPLETION: TypeAdapter[CompletionRequest] = TypeAdapter(CompletionRequest)
EMBEDDING: TypeAdapter[EmbeddingRequest] = TypeAdapter(EmbeddingRequest)
FEEDBACK: TypeAdapter[Rating | Pairwise | Correction] = TypeAdapter(FeedbackRequest)


def _fields(model: type[BaseModel]) -> set[str]:
    own = {field.alias or name for name, field in model.model_fields.items()}
    return own.union(*(_fields(child) for child in model.__subclasses__()))


KNOWN = sorted(_fields(Part))


def parse(adapter: TypeAdapter[Request], given: Any) -> Request:
    """A request from parsed JSON. Raises ApiError (400) that names the field."""
    try:
        return adapter.validate_python(given)
    except ValidationError as error:
        raise errors.invalid(error, given, KNOWN) from None


@dataclass(frozen=True, kw_only=True)
class MediaPart:
    """One medium of a request, still as the client sent it."""

    kind: Literal["image", "video", "audio"]
    url: str
    param: str  # where it stands, for errors: messages[0].content[1].image_url.url
