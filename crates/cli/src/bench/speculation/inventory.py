"""A small warehouse: items, stock movements and reorder reports, kept in a SQLite file."""

from __future__ import annotations

import argparse
import csv
import sqlite3
import sys
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS item (
    sku TEXT PRIMARY KEY,
    title TEXT NOT NULL,
    price_cents INTEGER NOT NULL CHECK (price_cents >= 0),
    reorder_level INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS movement (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sku TEXT NOT NULL REFERENCES item(sku),
    quantity INTEGER NOT NULL,
    moved_at TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Item:
    sku: str
    title: str
    price_cents: int
    reorder_level: int = 0

    @property
    def price(self) -> str:
        return f"{self.price_cents // 100}.{self.price_cents % 100:02d}"


class UnknownItem(Exception):
    def __init__(self, sku: str):
        super().__init__(f"there is no item {sku!r}")
        self.sku = sku


class Warehouse:
    def __init__(self, path: Path):
        self.connection = sqlite3.connect(path)
        self.connection.row_factory = sqlite3.Row
        self.connection.executescript(SCHEMA)

    def close(self) -> None:
        self.connection.close()

    def add_item(self, item: Item) -> None:
        with self.connection:
            self.connection.execute(
                "INSERT INTO item (sku, title, price_cents, reorder_level) VALUES (?, ?, ?, ?)",
                (item.sku, item.title, item.price_cents, item.reorder_level),
            )

    def find_item(self, sku: str) -> Item:
        row = self.connection.execute("SELECT * FROM item WHERE sku = ?", (sku,)).fetchone()
        if row is None:
            raise UnknownItem(sku)
        return Item(row["sku"], row["title"], row["price_cents"], row["reorder_level"])

    def move(self, sku: str, quantity: int, moved_at: datetime | None = None) -> None:
        self.find_item(sku)
        if quantity < 0 and self.stock(sku) + quantity < 0:
            raise ValueError(f"only {self.stock(sku)} of {sku!r} are in stock")
        with self.connection:
            self.connection.execute(
                "INSERT INTO movement (sku, quantity, moved_at) VALUES (?, ?, ?)",
                (sku, quantity, (moved_at or datetime.now()).isoformat(timespec="seconds")),
            )

    def stock(self, sku: str) -> int:
        row = self.connection.execute(
            "SELECT COALESCE(SUM(quantity), 0) AS total FROM movement WHERE sku = ?", (sku,)
        ).fetchone()
        return row["total"]

    def items_to_reorder(self) -> list[tuple[Item, int]]:
        rows = self.connection.execute("SELECT sku FROM item ORDER BY sku").fetchall()
        found = []
        for row in rows:
            item = self.find_item(row["sku"])
            stock = self.stock(item.sku)
            if stock <= item.reorder_level:
                found.append((item, stock))
        return found

    def sold_since(self, first: date) -> dict[str, int]:
        rows = self.connection.execute(
            "SELECT sku, -SUM(quantity) AS sold FROM movement"
            " WHERE quantity < 0 AND moved_at >= ? GROUP BY sku ORDER BY sold DESC",
            (first.isoformat(),),
        ).fetchall()
        return {row["sku"]: row["sold"] for row in rows}

    def import_csv(self, path: Path) -> int:
        count = 0
        with path.open(newline="", encoding="utf-8") as file:
            for record in csv.DictReader(file):
                item = Item(
                    sku=record["sku"].strip(),
                    title=record["title"].strip(),
                    price_cents=round(float(record["price"]) * 100),
                    reorder_level=int(record.get("reorder_level") or 0),
                )
                self.add_item(item)
                count += 1
        return count


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", type=Path, default=Path("warehouse.db"))
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="read items from a CSV file")
    importing.add_argument("file", type=Path)
    moving = commands.add_parser("move", help="note that stock came or went")
    moving.add_argument("sku")
    moving.add_argument("quantity", type=int)
    commands.add_parser("report", help="what to order, and what sold in the last week")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    warehouse = Warehouse(options.database)
    try:
        if options.command == "import":
            print(f"{warehouse.import_csv(options.file)} items read")
        elif options.command == "move":
            warehouse.move(options.sku, options.quantity)
            print(f"{options.sku}: {warehouse.stock(options.sku)} in stock")
        else:
            for item, stock in warehouse.items_to_reorder():
                print(f"order {item.sku} ({item.title}, {item.price}): {stock} left")
            for sku, sold in warehouse.sold_since(date.today() - timedelta(days=7)).items():
                print(f"sold {sold} of {sku}")
    except (UnknownItem, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        warehouse.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
