"""Makes spark.parquet and spark-legacy.parquet, which this suite reads but cannot write.

Needs Java 17 or newer and `pip install pyspark` (made with 4.3.0); run it in this folder, with TZ=UTC. The rows are
those of `SPARK_ROWS` in test_ingest_parquet_writers.py. The legacy layout has lists of two levels where items are never
null, and `bag.array` elsewhere.
"""

import shutil
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    IntegerType,
    LongType,
    MapType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

NOON = datetime(2024, 1, 1, 12, 0, 0, 123456, UTC)
ITEM = StructType(
    [
        StructField("id", StringType()),
        StructField("authenticatedState", StringType()),
        StructField("primary", BooleanType()),
    ]
)
PLACE = StructType([StructField("city", StringType()), StructField("zip", IntegerType())])
SCHEMA = StructType(
    [
        StructField("crmId", StringType()),
        StructField("identityMap", MapType(StringType(), ArrayType(ITEM))),
        StructField("name", StructType([StructField("first", StringType()), StructField("at", PLACE)])),
        StructField("tags", ArrayType(StringType())),
        StructField("numbers", ArrayType(LongType(), containsNull=False)),
        StructField("places", ArrayType(PLACE, containsNull=False)),
        StructField("nested", ArrayType(ArrayType(IntegerType()))),
        StructField("scores", MapType(StringType(), DoubleType())),
        StructField("seen", TimestampType()),
        StructField("local", TimestampNTZType()),
        StructField("times", ArrayType(TimestampType())),
        StructField("born", DateType()),
        StructField("price", DecimalType(9, 2)),
        StructField("total", DecimalType(25, 4)),
    ]
)
ROWS = [
    (
        "1",
        {"Email": [("a@x.nl", "authenticated", False)]},
        ("Ann", ("Oslo", 150)),
        ["a", None, ""],
        [1, 2**53 + 1],
        [("Rome", 1), ("Bonn", None)],
        [[1], None, [], [2, None]],
        {"x": 1.5, "y": None},
        NOON,
        NOON.replace(tzinfo=None),
        [datetime(1066, 10, 14, tzinfo=UTC), None],
        date(1999, 12, 31),
        Decimal("1234567.89"),
        Decimal("123456789012345678901.2345"),
    ),
    ("2", *[None] * 13),
    (
        "3",
        {},
        (None, None),
        [],
        [],
        [],
        [],
        {},
        datetime(9999, 12, 31, 23, 59, 59, 999999, UTC),
        None,
        [],
        None,
        None,
        None,
    ),
]


def main() -> None:
    session = (
        SparkSession.builder.master("local[1]")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.parquet.outputTimestampType", "INT96")
        .config("spark.sql.parquet.int96RebaseModeInWrite", "CORRECTED")
        .config("spark.sql.parquet.datetimeRebaseModeInWrite", "CORRECTED")
        .getOrCreate()
    )
    for name, legacy in (("spark", "false"), ("spark-legacy", "true")):
        session.conf.set("spark.sql.parquet.writeLegacyFormat", legacy)
        frame = session.createDataFrame(ROWS, SCHEMA)
        if legacy == "true":
            frame = frame.drop("local")  # not in that format
        frame.coalesce(1).write.mode("overwrite").parquet(f"{name}.tmp")
        [written] = Path(f"{name}.tmp").glob("part-*.parquet")
        written.rename(f"{name}.parquet")
        shutil.rmtree(f"{name}.tmp")
    session.stop()


if __name__ == "__main__":
    main()
