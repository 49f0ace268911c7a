"""The route of clicks: a like, a dislike, or the better of two answers."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...errors import RequestError, TrainError
from ..failures import RefusedError
from ..service import Service
from .exchange import about, read_json


async def tell(request: Request, service: Service) -> Response:
    """Answer `POST /v1/feedback`: `{"id", "reward"}`, or `{"better", "worse"}`."""
    key_user = service.authorize(request.headers)
    feedback = service.feedback
    if feedback is None:
        message = "this server learns from no clicks: start it with --store and --feedback"
        raise RefusedError(404, message, "no_feedback")
    body = await read_json(request, service)
    if not isinstance(body, dict):
        raise RequestError("the body is no JSON object")
    try:
        if body.keys() == {"id", "reward"}:
            reward = body["reward"]
            if type(reward) is not int or reward not in (1, -1):
                raise RequestError("reward is neither 1 nor -1", param="reward")
            name = _name(body, "id")
            stored = await service.in_turn(feedback.tell, name, reward, key_user)
        elif body.keys() == {"better", "worse"}:
            names = _name(body, "better"), _name(body, "worse")
            stored = await service.in_turn(feedback.prefer, *names, key_user)
        else:
            raise RequestError('the body has neither "id" and "reward" alone, nor "better" and "worse"')
    except TrainError as error:
        raise RequestError(str(error), code="nothing_learned") from None
    about(request)["user"] = stored.user
    return JSONResponse({"object": "feedback", "user": stored.user, "sequence": stored.sequence})


def _name(body: dict[str, object], part: str) -> str:
    name = body[part]
    if not isinstance(name, str):
        raise RequestError(f"{part} is no text", param=part)
    return name.removeprefix("chat").removeprefix("cmpl-")
