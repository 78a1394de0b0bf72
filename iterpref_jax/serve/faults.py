"""What goes wrong, in the API's own error form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A refused or failed request: HTTP status, message, and the field (`param`) and `code` that programs read."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ):
        super().__init__(message)
        self.message, self.status, self.kind, self.param, self.code = message, status, kind, param, code

    def body(self) -> dict[str, Any]:
        """Returns the JSON that the client gets."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def unknown_model(name: str, served: str) -> ApiError:
    message = f"The model {name!r} does not exist; this server has {served!r}"
    return ApiError(message, status=404, param="model", code="model_not_found")


def too_long(prompt: int, completion: int, context: int, param: str) -> ApiError:
    """The prompt and the tokens that may follow it (0: as many as fit) are more than the context holds."""
    asked = f"{prompt} in the prompt, {completion} in the completion" if completion else f"{prompt} in the prompt alone"
    message = (
        f"This server's maximum context length is {context} tokens, but this request needs more: {asked}. "
        "Shorten the prompt or lower max_tokens, or start the server with a larger config.decode.context"
    )
    return ApiError(message, param=param, code="context_length_exceeded")


def overloaded(there: int, wanted: int, most: int) -> ApiError:
    message = (
        f"{there} completions run or wait already; with the {wanted} of this request they would be more than {most} "
        "(config.serve.max_waiting); try again later"
    )
    return ApiError(message, status=429, kind="rate_limit_error", code="rate_limit_exceeded")


def internal() -> ApiError:
    return ApiError("The server failed; its log says why", status=500, kind="server_error", code="internal_error")


def unavailable(why: str) -> ApiError:
    return ApiError(why, status=503, kind="server_error", code="unavailable")
