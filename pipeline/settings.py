"""The base class of all settings, of the pipeline's stages and of serving."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from pipeline.errors import SettingError


class Settings(BaseModel):
    """Frozen, validated settings. A wrong value is a SettingError that names its flag."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    flag_prefix: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Turn the first of pydantic's errors into a SettingError of one line."""
        try:
            return validate(values)
        except ValidationError as error:
            problem = error.errors()[0]
            reason = problem["msg"].removeprefix("Value error, ")
            if not problem["loc"]:
                raise SettingError(f"{cls.__name__}: {reason}.") from None
            flag = f"--{cls.flag_prefix}{str(problem['loc'][0]).replace('_', '-')}"
            raise SettingError(f"{flag} is {problem['input']!r}: {reason}.") from None
