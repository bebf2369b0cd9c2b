"""Pipelines as diffusers folders: saved whole or not at all, loaded strictly, with nothing pickled."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from latent_shift.core.disk import clear_write_errors
from latent_shift.core.errors import InputError
from latent_shift.core.files import atomic_path, write_json
from latent_shift.models import LatentShiftUNet

from .components import (
    DeviceMap,
    check_replaceable,
    component_class,
    index_entry,
    load_component,
    read_index,
    resolve_folder,
)

_LOADING_FACTS = {"_name_or_path", "is_local", "local_files_only"}
"""What libraries write about the place that a part was loaded from."""


P = TypeVar("P", bound="FolderPipeline")


class FolderPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A diffusers pipeline of `parts` and settings, which are the arguments of its `__init__`."""

    parts: ClassVar[tuple[str, ...]] = ()
    """What `model_index.json` lists, and the folders have as names."""

    @classmethod
    def settings(cls) -> list[str]:
        """The names of the pipeline's own settings: its arguments that are no parts."""
        return [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", *cls.parts)]

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes a diffusers folder, whole or not at all, that names no path of this machine and no module of ours.

        A `LatentShiftUNet` is listed as diffusers' 2-D class, whose keys it has: anyone can load it as an image model.

        Raises:
            InputError: a `ValueError`, if the place cannot be written or holds files that are no saved pipeline, or a
                part is None.
            DataError: the disk is full.
        """
        if not kwargs.get("safe_serialization", True):
            raise InputError("safe_serialization", False, "be True: nothing is pickled")
        if kwargs.get("push_to_hub"):
            raise InputError("push_to_hub", True, "be left out: the pipeline's method push_to_hub uploads it")
        parts = {name: getattr(self, name) for name in self.parts}
        for name, part in parts.items():
            if part is None:
                raise InputError(name, None, "be there: a model is saved whole")
        check_replaceable(Path(save_directory), self.parts)
        with clear_write_errors(str(save_directory)), atomic_path(save_directory) as temporary:
            super().save_pretrained(temporary, **kwargs)
            for file in temporary.rglob("*.json"):
                tree = json.loads(file.read_text(encoding="utf-8"))
                if isinstance(tree, dict) and not _LOADING_FACTS.isdisjoint(tree):
                    write_json(file, {key: value for key, value in tree.items() if key not in _LOADING_FACTS})
            index = json.loads((temporary / "model_index.json").read_text(encoding="utf-8"))
            # `torch.compile` wraps a network; its files are those of what is inside.
            index |= {name: index_entry(type(getattr(part, "_orig_mod", part))) for name, part in parts.items()}
            write_json(temporary / "model_index.json", index)

    @classmethod
    def from_pretrained(
        cls: type[P],
        pretrained_model_name_or_path: str | Path,
        torch_dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
        dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
        variant: str | None = None,
        device_map: DeviceMap = None,
        **kwargs: Any,
    ) -> P:
        """Loads a folder, or a hub model where there is a network; see `load_pipeline` for names.

        Every key of every network must fit, and nothing pickled is read.

        Args:
            pretrained_model_name_or_path: a pipeline folder, or a name of the hub.
            torch_dtype: of the networks, all or by name: `{"default": ..., "unet": ...}`; fp32 where None.
            dtype: as `torch_dtype`; the newer name.
            variant: as in diffusers: the weights are in files named `*.VARIANT.safetensors`.
            device_map: "meta" for networks without memory, to see whether a folder is whole.
            **kwargs: parts and settings, by their names in `LatentShiftPipeline`, instead of the folder's; and those of
                the hub: revision, token, cache_dir, local_files_only, force_download. `use_safetensors` and
                `low_cpu_mem_usage` may be True, which they are without being said.

        Raises:
            InputError: a `ValueError`, if the folder is no pipeline, weights do not fit, or an argument is not known.
            DataError: a file in it is damaged or missing.
        """
        types = dtype or torch_dtype
        for one in types.values() if isinstance(types, Mapping) else (types,):
            if not isinstance(one, torch.dtype | None):
                raise InputError("torch_dtype", one, "be a torch.dtype, or map names of parts to them")
        for name in ("use_safetensors", "low_cpu_mem_usage"):
            if kwargs.pop(name, None) not in (None, True):
                raise InputError(name, False, "be True, or left out")
        if device_map not in (None, "meta"):
            raise InputError("device_map", device_map, "be left out: move the pipeline with `to`, or offload it")
        given = {name: kwargs.pop(name) for name in (*cls.parts, *cls.settings()) if name in kwargs}
        folder = resolve_folder(pretrained_model_name_or_path, cls.parts, variant, **kwargs)
        index = read_index(folder)
        if ("text_encoder_2" in index) != ("text_encoder_2" in cls.parts):
            expected = f"have the parts of a {cls.__name__} (load_pipeline finds the right class)"
            raise InputError("model", str(folder), expected)
        settings = {name: index[name] for name in cls.settings() if name in index}
        for name in (name for name in cls.parts if name not in given):
            part_type = types.get(name, types.get("default")) if isinstance(types, Mapping) else types
            part_class = component_class(folder, name)
            part_class = LatentShiftUNet if part_class is UNet2DConditionModel else part_class
            given[name] = load_component(part_class, folder / name, part_type, variant, device_map)
        return cls(**{**settings, **given})
