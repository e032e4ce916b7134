"""What a run began with; only with the same can it go on exactly."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..prepare.records import differences
from .stages import Recipe

START_ANEW = (
    "give the same, or another --run-dir; to go on from this run's result, give it as --base "
    "(an adapter by way of `python -m loopy_model.cli merge`)"
)


@dataclass(frozen=True)
class Beginning:
    recipe: Recipe
    clips: str  # fingerprint of the training clips
    base: str | None  # fingerprint of the base model; None: no frozen weight and no teacher comes from it
    encoders: list | None  # identity of what made the clips; None: an older version, which did not note it

    def to_json(self) -> str:
        return json.dumps(vars(self) | {"recipe": self.recipe.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> "Beginning":
        """A field of the recipe that is younger than `text` has its default."""
        values = json.loads(text)
        recipe = Recipe.from_dict(values["recipe"])
        return cls(recipe, values["clips"], values["base"], values.get("encoders"))

    def refuse_another(self, now: "Beginning", stages: int, run_dir: Path, data: Path) -> None:
        """Raises ValueError with a sentence if `now` differs, but for stages after the first `stages`,
        which have not begun."""
        if different := list(self._other_settings(now, stages)):
            raise ValueError(
                f"{run_dir} was begun with another recipe ({'; '.join(different[:3])}); {START_ANEW}."
            )
        if self.clips != now.clips:
            raise ValueError(
                f"{run_dir} was begun with other training clips than {data} has now; {START_ANEW}."
            )
        if self.encoders not in (None, now.encoders):
            raise ValueError(
                f"{run_dir} was begun with clips of another VAE, speech encoder or size than {data} has now; "
                f"{START_ANEW}."
            )
        if self.base != now.base:
            raise ValueError(f"{run_dir} was begun on another base model; {START_ANEW}.")

    def _other_settings(self, now: "Beginning", stages: int) -> Iterator[str]:
        for place, was, is_now in differences(self._until(stages), now._until(stages)):
            name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
            yield f"{name.removeprefix('.')} was {was}, now {is_now}"

    def _until(self, stages: int) -> dict[str, Any]:
        recipe = json.loads(self.to_json())["recipe"]
        return recipe | {"stages": recipe["stages"][:stages]}
