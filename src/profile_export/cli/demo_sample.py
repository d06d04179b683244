"""The sample of the demo: people whom several systems know, made up and the same on every run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

_PEOPLE = 2_000
_EVENTS_MADE = 6_000
_STRANGERS = 150
"""Devices that never told an email: they stay without a profile record."""

Row = dict[str, Any]

_SEED = 2024
_START = datetime(2025, 3, 1, tzinfo=UTC)
_MINUTES = 90 * 24 * 60
_SHORT = len("ada0123@example.com")
_FIRST = (
    "Ada Alan Amir Anke Anna Aylin Ben Bram Carla Chen Daan Dana Elif Emma Eva Femke Finn Grace Hana Hugo Ida Ines "
    "Iris Jonas Juna Kaan Kofi Lars Lea Lina Lotte Luca Maja Marta Mats Mina Nils Noor Olga Omar Otto Paula Pien Rosa "
    "Ruben Sami Sofia Sven Tariq Tess Theo Timo Ulla Vera Wim Yara Yusuf Zoe"
)
_LAST = (
    "Adler Bakker Becker Berg Blom Bos Brandt Claes Costa Demir Dijkstra Ebner Engel Faber Fischer Garcia Hansen Haas "
    "Ivanova Jansen Kaya Keller Khan Kok Kramer Lang Lindt Maas Meyer Moreau Novak Okafor Peeters Petit Quist Rossi "
    "Sato Schmidt Silva Smit Stein Tanaka Thomas Tran Visser Vogel Weber Willems Yilmaz Zimmer"
)
_CITIES = (
    ("Amsterdam", "NL", "1017"),
    ("Antwerp", "BE", "2000"),
    ("Berlin", "DE", "10115"),
    ("Cologne", "DE", "50667"),
    ("Ghent", "BE", "9000"),
    ("Hamburg", "DE", "20095"),
    ("Lyon", "FR", "69001"),
    ("Rotterdam", "NL", "3011"),
    ("Utrecht", "NL", "3511"),
    ("Vienna", "AT", "1010"),
)
_LANGUAGES = {"NL": "nl-NL", "BE": "nl-BE", "DE": "de-DE", "FR": "fr-FR", "AT": "de-AT"}
_TOPICS = ("garden", "kitchen", "lighting", "outdoor", "storage", "textiles")
_PAGES = ("home", "kitchen", "lighting", "new arrivals", "sale", "checkout")
_TIERS = ("bronze", "silver", "gold")
# Which systems know a person, with weights. The newsletter knows loyalty ids only, which the shop leads to an email.
_WHERE = {
    ("crm", "shop", "newsletter"): 22,
    ("crm", "shop"): 24,
    ("crm",): 26,
    ("shop",): 10,
    ("shop", "newsletter"): 10,
    ("newsletter",): 8,
}


@dataclass(frozen=True)
class Sample:
    """The rows of each source."""

    crm: list[Row] = field(default_factory=list)
    shop: list[Row] = field(default_factory=list)
    newsletter: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)

    def shown(self) -> str:
        """Return the crm id of somebody whom all three sources know, with values that disagree."""
        shop = {row["personalEmail"]["address"]: row for row in self.shop}
        newsletter = {row["loyalty"]["loyaltyId"]: row for row in self.newsletter}
        for row in self.crm:
            bought = shop.get(row["personalEmail"]["address"], {})
            reads = newsletter.get(bought.get("loyalty", {}).get("loyaltyId"), {})
            if (
                reads
                and reads["consents"]["marketing"]["email"]["val"] == "n"
                and len(reads["newsletter"]["topics"]) == 1
                and bought["homeAddress"] != row["homeAddress"]
                and "mobilePhone" in bought
                and len(row["personalEmail"]["address"]) <= _SHORT
            ):
                return str(row["crmId"])
        raise LookupError("the sample has nobody whom all sources know")

    def rows_of(self, crm_id: str) -> dict[str, Row]:
        """Return what each source knows about the person with a crm id."""
        crm = next(row for row in self.crm if row["crmId"] == crm_id)
        shop = next(row for row in self.shop if row["personalEmail"] == crm["personalEmail"])
        loyalty_id = shop["loyalty"]["loyaltyId"]
        newsletter = next(row for row in self.newsletter if row["loyalty"]["loyaltyId"] == loyalty_id)
        return {"crm": crm, "shop": shop, "newsletter": newsletter}


def make_sample() -> Sample:
    """Return the sample."""
    dice = random.Random(_SEED)  # noqa: S311 - repeatable is the point
    sample = Sample()
    devices: list[tuple[str, str]] = []
    for number in range(1, _PEOPLE + 1):
        known = dice.choices(list(_WHERE), list(_WHERE.values()))[0]
        person = _Person(number, dice)
        if "crm" in known:
            sample.crm.append(person.crm())
        if "shop" in known:
            sample.shop.append(person.shop())
        if "newsletter" in known:
            sample.newsletter.append(person.newsletter())
        if known != ("newsletter",):
            devices.append((f"{dice.getrandbits(64):020d}", person.email))
    devices += [(f"{dice.getrandbits(64):020d}", "") for _ in range(_STRANGERS)]
    sample.events.extend(_events(devices, dice))
    return sample


class _Person:
    def __init__(self, number: int, dice: random.Random) -> None:
        self._number = number
        self._dice = dice
        self._first, self._last = dice.choice(_FIRST.split()), dice.choice(_LAST.split())
        self.email = f"{self._first}{number}@example.com".lower()
        self._loyalty_id = f"L-{700_000 + number}"
        self._city = dice.choice(_CITIES)
        self._moved_to = dice.choice(_CITIES) if dice.random() < 0.3 else self._city  # noqa: PLR2004 - a share of the people

    def crm(self) -> Row:
        dice = self._dice
        return {
            "crmId": f"C-{10_000 + self._number}",
            "person": {
                "name": {"firstName": self._first, "lastName": self._last},
                "birthYear": dice.randint(1945, 2005),
            },
            "personalEmail": {"address": self.email},
            "mobilePhone": {"number": f"+1 555 010 {self._number:04d}"},
            "homeAddress": self._address(self._city),
            "consents": {"marketing": {"email": {"val": "y"}, "call": {"val": dice.choice("yn")}}},
        }

    def shop(self) -> Row:
        dice = self._dice
        row = {
            "personalEmail": {"address": self.email},
            "person": {"name": {"firstName": self._first}},
            "homeAddress": self._address(self._moved_to),
            "loyalty": {
                "loyaltyId": self._loyalty_id,
                "tier": dice.choice(_TIERS),
                "points": dice.randrange(0, 5_000, 10),
            },
        }
        if dice.random() < 0.5:  # noqa: PLR2004 - a share of the people
            row["mobilePhone"] = {"number": f"+1 555 019 {self._number:04d}"}
        return row

    def newsletter(self) -> Row:
        dice = self._dice
        return {
            "loyalty": {"loyaltyId": self._loyalty_id},
            "preferredLanguage": _LANGUAGES[self._moved_to[1]],
            "consents": {"marketing": {"email": {"val": dice.choice("yyn")}}},
            "newsletter": {"topics": sorted(dice.sample(_TOPICS, dice.randint(1, 3)))},
        }

    def _address(self, city: tuple[str, str, str]) -> Row:
        name, country, code = city
        return {"city": name, "postalCode": code, "country": country}


def _events(devices: list[tuple[str, str]], dice: random.Random) -> Iterator[Row]:
    """Events of the devices; each device that has an email tells it with its first event, then now and then."""
    told: set[str] = set()
    for number in range(_EVENTS_MADE):
        device, email = devices[number] if number < len(devices) else dice.choice(devices)
        identities: Row = {"ECID": [{"id": device, "primary": True}]}
        purchase = bool(email) and dice.random() < 0.35  # noqa: PLR2004 - a share of the people
        if email and (device not in told or purchase):
            identities["Email"] = [{"id": email}]
            told.add(device)
        time = _START + timedelta(minutes=dice.randrange(_MINUTES), seconds=dice.randrange(60))
        event = {"_id": f"e-{number:05d}", "timestamp": time.isoformat(), "identityMap": identities}
        yield event | (_purchase(dice) if purchase else _page_view(dice))


def _purchase(dice: random.Random) -> Row:
    return {
        "eventType": "commerce.purchases",
        "commerce": {"order": {"priceTotal": dice.randrange(500, 25_000) / 100, "currencyCode": "EUR"}},
    }


def _page_view(dice: random.Random) -> Row:
    return {
        "eventType": "web.webpagedetails.pageViews",
        "web": {"webPageDetails": {"name": dice.choice(_PAGES)}},
    }
