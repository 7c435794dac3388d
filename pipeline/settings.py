"""The base of all settings, of the stages and of serving."""

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
    """Frozen and self-checking; a wrong value is a SettingError that names its flag."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    flag_prefix: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return check(values)
        except ValidationError as error:
            problem = error.errors()[0]
            field = str(problem["loc"][0]) if problem["loc"] else ""
            flag = f"--{cls.flag_prefix}{field.replace('_', '-')}" if field else cls.__name__
            reason = problem["msg"].removeprefix("Value error, ")
            given = f" is {problem['input']!r}" if field else ""
            raise SettingError(f"{flag}{given}: {reason}.") from None
