"""What a service tells of the models it offers."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

PRICE_KINDS: Final = (
    "training_tokens",
    "sampling_prefill_tokens",
    "sampling_cached_prefill_tokens",
    "sampling_output_tokens",
)
_MODES: Final = {"lora": "LoRA", "full_ft": "Full-FT"}


@dataclass(frozen=True)
class SupportedModelPrice:
    """What one unit costs, in millionths of a dollar."""

    unit: str
    unit_price_micros: int
    version: str | None = None

    @property
    def unit_price_usd(self) -> Decimal:
        """In dollars, exactly."""
        return Decimal(self.unit_price_micros) / Decimal(1_000_000)

    @classmethod
    def from_payload(cls, payload: Any) -> "SupportedModelPrice | None":
        """None where there is no price."""
        if not isinstance(payload, Mapping) or "unit_price_micros" not in payload:
            return None
        version = payload.get("version")
        return cls(
            unit=str(payload.get("unit") or ""),
            unit_price_micros=int(payload["unit_price_micros"]),
            version=None if version is None else str(version),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "unit": self.unit,
            "unit_price_micros": self.unit_price_micros,
            "unit_price_usd": str(self.unit_price_usd),
            "version": self.version,
        }


@dataclass(frozen=True)
class SupportedTrainingMode:
    """A way of training a model, and what it costs."""

    mode: str
    display_name: str
    prices: dict[str, SupportedModelPrice]

    @property
    def price(self) -> SupportedModelPrice | None:
        """Of a trained token."""
        return self.price_for("training_tokens")

    def price_for(self, usage_kind: str) -> SupportedModelPrice | None:
        """Of one kind of use."""
        return self.prices.get(usage_kind)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        prices = {kind: price.to_dict() for kind, price in self.prices.items()}
        return {"mode": self.mode, "display_name": self.display_name, "prices": prices}


@dataclass(frozen=True)
class SupportedModel:
    """A model that can be trained or sampled."""

    id: str
    name: str
    status: str
    visibility: str | None
    training_modes: tuple[SupportedTrainingMode, ...]
    metadata: dict[str, Any]

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> "SupportedModel":
        """From a service's answer. A mode counts when it is named and has all four prices."""
        prices = payload.get("prices") or {}
        named = payload.get("training_modes")
        if named is None:
            named = [mode for mode in _MODES if f"training_tokens:{mode}" in prices]
        offered = {_spelt(str(mode)) for mode in named}
        modes = (SupportedTrainingMode(mode, shown, _prices(prices, mode)) for mode, shown in _MODES.items())
        visibility = payload.get("visibility")
        return cls(
            id=str(payload.get("id") or ""),
            name=str(payload.get("name") or ""),
            status=str(payload.get("status") or "available"),
            visibility=None if visibility is None else str(visibility),
            training_modes=tuple(one for one in modes if one.mode in offered and len(one.prices) == len(PRICE_KINDS)),
            metadata=dict(payload.get("metadata") or {}),
        )

    @property
    def sampling_prices(self) -> dict[str, SupportedModelPrice]:
        """Of sampling a model trained with LoRA."""
        lora = self.training_mode("lora")
        found = {} if lora is None else lora.prices
        return {kind: price for kind, price in found.items() if kind != "training_tokens"}

    def training_mode(self, mode: str) -> SupportedTrainingMode | None:
        """None where it is not offered."""
        return next((one for one in self.training_modes if one.mode == _spelt(mode)), None)

    def to_dict(self, *, mode: str | None = None) -> dict[str, Any]:
        """As JSON has it, with one mode or all."""
        modes = [one.to_dict() for one in self.training_modes if mode is None or one.mode == _spelt(mode)]
        return {
            "id": self.id,
            "name": self.name,
            "status": self.status,
            "visibility": self.visibility,
            "training_modes": modes,
            "metadata": self.metadata,
        }


def _spelt(mode: str) -> str:
    return mode.strip().lower().replace("-", "_")


def _prices(prices: Mapping[str, Any], mode: str) -> dict[str, SupportedModelPrice]:
    """Sampling may have one price for all modes; training has one for each."""
    found = {}
    for kind in PRICE_KINDS:
        common = None if kind == "training_tokens" else prices.get(kind)
        price = SupportedModelPrice.from_payload(prices.get(f"{kind}:{mode}") or common)
        if price is not None:
            found[kind] = price
    return found
