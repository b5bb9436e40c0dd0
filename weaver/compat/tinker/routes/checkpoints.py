"""What is known of stored weights."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from weaver.compat.context import TheService
from weaver.compat.tinker import answers, requests
from weaver.compat.tinker.routes.bodies import json_object

router = APIRouter()


@router.post("/weights_info")
async def weights_info(request: Request, service: TheService) -> JSONResponse:
    body = requests.parse(requests.WeightsInfo, await json_object(request))
    return JSONResponse(answers.weights_info(service.checkpoint_info(body.tinker_path)))
