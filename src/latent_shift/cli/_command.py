"""Errors of the command line name arguments as they were typed."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from latent_shift.core.errors import InputError

_TYPED_AS = {
    "data.source": "source",
    "duration_s": "duration",
    "guidance_scale": "guidance",
    "height": "size",
    "metric": "metrics",
    "negative_prompt": "negative",
    "num_frames": "frames",
    "num_inference_steps": "steps",
    "output": "destination",
    "width": "size",
}
"""What the library calls an argument, and the parameter of a command that gives it, where they differ."""


class Command(TyperCommand):
    """A command whose `InputError`s name its options (`--steps`), and not what the library calls them.

    Not for commands that read a recipe, too: its keys have the names of options.
    """

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            error.rename(self._typed(error.argument))
            raise

    def _typed(self, argument: str) -> str:
        own: dict[str | None, Any] = {param.name: param for param in self.params}
        param = own.get(argument, own.get(_TYPED_AS.get(argument)))
        if param is None:
            return argument
        if param.param_type_name == "argument":
            return str(param.metavar or param.name)
        return str(max(param.opts, key=len))
