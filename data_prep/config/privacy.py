"""Personal data and secrets: what is looked for, and what becomes of it."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from maxlm.config import Count, Name, Section

PersonalType = Literal["email", "ipv4", "ipv6", "phone", "identity", "card", "secret"]
TYPES: tuple[PersonalType, ...] = get_args(PersonalType)
# YAML reads off as false.
Action = Annotated[Literal["mask", "drop", "off"], BeforeValidator(lambda value: "off" if value is False else value)]
# What is known of an IP address; version: four numbers that are a version's or a section's.
AddressKind = Literal["global", "private", "loopback", "documentation", "reserved", "version"]
FIELDS = re.compile(r"\{(\w*)\}")


class PrivacyConfig(Section):
    """Each type is masked where it stands, or its document is dropped, or it is left as it is.

    The work directory keeps the text as it was read.
    """

    email: Action = Field("mask", description="E-mail addresses.")
    ipv4: Action = Field("mask", description="IPv4 addresses.")
    ipv6: Action = Field("mask", description="IPv6 addresses.")
    phone: Action = Field("mask", description="Phone numbers that are valid by their country's numbering plan.")
    identity: Action = Field("mask", description="Chinese identity numbers: region, date of birth and check digit.")
    card: Action = Field("mask", description="Numbers of bank cards: issuer's range, length and check digit.")
    secret: Action = Field(
        "mask", description="Keys and tokens by their providers' formats, private keys, assigned passwords."
    )
    placeholder: str = Field(
        "[{TYPE}]",
        description="What takes a value's place: {type} and {TYPE} are its type in small and capital letters; with "
        "{number}, equal values of a document get the same number from 1 on. It is plain text to a tokenizer.",
    )
    leave_addresses: list[AddressKind] = Field(
        ["private", "loopback", "documentation", "reserved", "version"],
        description="Kinds of IP addresses that are no one's: they are left as they are. Reserved are multicast, "
        "broadcast, unspecified ones and masks of networks; version are numbers such as 1.2.3.4 in 'version 1.2.3.4'.",
    )
    phone_regions: list[Annotated[str, Field(pattern=r"^[A-Z]{2}$")]] = Field(
        ["CN", "US"],
        description="Regions, as ISO 3166 codes, whose phone numbers are found without a country code: of CN and US in "
        "their usual groups, of any behind a word such as 'phone'. With a country code those of all regions are.",
    )
    max_spans: Count | None = Field(
        None, description="Values that a document may have masked; one with more is dropped. Null for any number."
    )
    sources: list[Name] | None = Field(None, description="Sources that the section is for; null for all.")
    languages: list[Name] | None = Field(
        None,
        description="Languages, as the documents have them, that the section is for, code among them; null for all.",
    )
    expect_matches: bool = Field(False, description="Stop with exit code 3 when nothing is masked or dropped.")

    @property
    def actions(self) -> Mapping[str, Action]:
        return {name: getattr(self, name) for name in TYPES}

    def fill(self, type: str, number: int) -> str:
        """The placeholder of a value; `number` counts the values of its type in a document."""
        return self.placeholder.format(type=type, TYPE=type.upper(), number=number)

    @model_validator(mode="after")
    def _check(self) -> "PrivacyConfig":
        unknown = set(FIELDS.findall(self.placeholder)) - {"type", "TYPE", "number"}
        if unknown or "{" in (rest := FIELDS.sub("", self.placeholder)) or "}" in rest:
            raise ValueError(
                f"placeholder: '{self.placeholder}' has other braces than {{type}}, {{TYPE}} and {{number}}"
            )
        if set(self.actions.values()) == {"off"}:
            raise ValueError("every type is off; set one to mask or drop, or leave the section out")
        return self
