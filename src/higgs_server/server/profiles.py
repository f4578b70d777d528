"""`/profiles`: voices described in words, as servers of this kind have them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from higgs_server.library.profiles import ProfileLibrary
from higgs_server.server.bodies import read_json
from higgs_server.server.errors import said
from higgs_server.server.openapi import LIBRARY_ERRORS, json_body
from higgs_server.server.schemas import ProfileAnswer, ProfileBody, ProfileChange, ProfileItem
from higgs_server.settings import Settings
from higgs_server.types import Profile


def routes(settings: Settings) -> APIRouter:
    """The router of the profiles."""
    router = APIRouter(prefix="/profiles", tags=["profiles"], responses=LIBRARY_ERRORS)
    library = ProfileLibrary(settings.voice_prompts_dir)

    @router.get("")
    def profiles(request: Request) -> ProfileAnswer:
        """The profiles that `ref_audio` can name, as `profile:NAME`."""
        found = [_item(profile) for profile in library.list()]
        return ProfileAnswer(
            message=said(request.headers, "Profiles listed", "获取Profile列表成功"), profiles=found, count=len(found)
        )

    @router.post("", openapi_extra=json_body(ProfileBody))
    async def create(request: Request) -> ProfileAnswer:
        """Adds a profile."""
        body = await read_json(request, ProfileBody)
        profile = await asyncio.to_thread(library.add, body.name, body.description)
        return ProfileAnswer(
            message=said(request.headers, f"Profile '{profile.name}' created", f"Profile '{profile.name}' 创建成功"),
            profile=_item(profile, body.characteristics),
        )

    @router.get("/{name}")
    def profile(name: str, request: Request) -> ProfileAnswer:
        """One profile."""
        found = library.get(name, "name")
        return ProfileAnswer(message=said(request.headers, "Profile found", "获取Profile成功"), profile=_item(found))

    @router.put("/{name}", openapi_extra=json_body(ProfileChange))
    async def change(name: str, request: Request) -> ProfileAnswer:
        """Describes a profile anew."""
        body = await read_json(request, ProfileChange)
        if body.description is None:
            changed = await asyncio.to_thread(library.get, name, "name")
        else:
            changed = await asyncio.to_thread(library.update, name, body.description)
        return ProfileAnswer(
            message=said(request.headers, f"Profile '{changed.name}' updated", f"Profile '{changed.name}' 更新成功"),
            profile=_item(changed, body.characteristics),
        )

    @router.delete("/{name}")
    async def delete(name: str, request: Request) -> ProfileAnswer:
        """Removes a profile."""
        gone = await asyncio.to_thread(library.delete, name)
        return ProfileAnswer(
            message=said(request.headers, f"Profile '{gone.name}' deleted", f"Profile '{gone.name}' 删除成功")
        )

    return router


def _item(profile: Profile, characteristics: dict[str, Any] | None = None) -> ProfileItem:
    return ProfileItem(name=profile.name, description=profile.description, characteristics=characteristics or {})
