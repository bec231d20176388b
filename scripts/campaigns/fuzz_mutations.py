"""Ways to damage files so that they still look like what they were: for fuzz_readers.py."""

import copy
import io
import json
import pickletools
import random
import struct
import warnings
import zipfile
import zlib
from typing import Any

ODD_VALUES: list[Any] = [
    *(
        0,
        1,
        -1,
        2,
        7,
        255,
        2**16,
        2**31,
        2**32 - 1,
        2**40,
        2**62,
        2**63,
        2**64 - 1,
        2**64,
        10**400,
        1.5,
        1e308,
    ),
    *("", "F32", "F4", "BF16", "I64", "nonsense", "../up", "/etc/passwd", "\ud800", "a" * 5000, "重み", "\0"),
    *(None, True, False, [], {}, [0], [[]], [1, 2, 3], [2**40, 2**40], [0, 2**63], {"dtype": "F32"}),
]
ODD_NUMBERS = [value for value in ODD_VALUES if type(value) is int and value < 2**100]
ODD_OPERATIONS = [
    *(
        b"(",
        b"0",
        b"1",
        b"2",
        b"N",
        b"\x88",
        b")",
        b"]",
        b"}",
        b"t",
        b"a",
        b"e",
        b"s",
        b"u",
        b"b",
        b"R",
        b"Q",
        b"\x81",
    ),
    *(
        b"\x85",
        b"\x86",
        b"\x87",
        b"\x8f",
        b"\x90",
        b"\x91",
        b"\x94",
        b".",
        b"h\x00",
        b"h\x05",
        b"q\x00",
        b"q\xff",
    ),
    *(
        b"j\xff\xff\xff\xff",
        b"r\xff\xff\xff\xff",
        b"X\xff\xff\xff\xff",
        b"B\xff\xff\xff\xff",
        b"T\xff\xff\xff\x7f",
    ),
    *(
        b"\x8b\xff\xff\xff\x7f",
        b"\x8d" + b"\xff" * 8,
        b"\x8e" + b"\xff" * 8,
        b"\x95" + b"\xff" * 8,
        b"\x96" + b"\xff" * 8,
    ),
    *(
        b"cos\nsystem\n",
        b"cbuiltins\neval\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
    ),
    *(
        b"ctorch\nFloatStorage\n",
        b"ctorch\nSize\n",
        b"(ios\nsystem\n",
        b"S'text'\n",
        b"I10\n",
        b"L10L\n",
        b"P0\n",
    ),
    *(
        b"}" * 5000,
        b")" + b"\x85" * 5000,
        b"G\x7f\xf8" + bytes(6),
        b"\x82\x01",
        b"\x8cX",
        b"X\x02\x00\x00\x00\xff\xfe",
    ),
]


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, set, cut, repeat, insert or move bytes, knowing nothing of what they mean."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(changed) + 1) if rng.random() < 0.5 else rng.randrange(min(len(changed), 64) + 1)
        length = rng.choice((1, 2, 4, 8, rng.randrange(256)))
        other = rng.randrange(len(changed) + 1)
        match rng.randrange(8):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(changed):
                changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del changed[rng.randrange(len(changed) + 1) :]
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[other : other + length]
            case 5:
                changed[at:at] = rng.randbytes(length)
            case 6:
                changed[at : at + length] = changed[other : other + length]
            case _:
                number = rng.choice(ODD_NUMBERS) % 2**64
                changed[at : at + 8] = struct.pack(rng.choice("<>") + "Q", number)
    return bytes(changed)


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """Replace, drop, rename, repeat or exchange values of a JSON document."""
    document = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(document))
        container, key = rng.choice(places)
        match rng.randrange(6):
            case 0 | 1:
                container[key] = copy.deepcopy(rng.choice(ODD_VALUES))
            case 2:
                del container[key]
            case 3 if isinstance(container, dict):
                container[str(rng.choice(ODD_VALUES))] = container.pop(key)
            case _:
                other, other_key = rng.choice(places)
                container[key] = json.loads(json.dumps(other[other_key]))
        if not document:
            break
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.1 and document:
        key = rng.choice(list(document))
        text = f"{{{json.dumps(key)}: {json.dumps(rng.choice(ODD_VALUES))}, {text[1:]}"
    if rng.random() < 0.05:
        text = text.replace("[", "[" * rng.choice((2, 100, 100_000)), 1)
    return text.encode("utf-8", "surrogatepass")


def damage_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Damage the bytes, the header with its length kept right, the length, or the data."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    match rng.randrange(6):
        case 0:
            return damage_bytes(content, rng)
        case 1:
            wrong = rng.choice((length + rng.randint(-9, 9), len(data), *ODD_NUMBERS)) % 2**64
            return struct.pack("<Q", wrong) + content[8:]
        case 2:
            header, data = damage_json(header, rng), damage_bytes(data, rng)
        case 3:
            data = data[: len(data) // 2] + rng.randbytes(len(data) - len(data) // 2)
        case _:
            header = damage_json(header, rng)
    return struct.pack("<Q", len(header)) + header + data


def damage_archive(content: bytes, rng: random.Random) -> bytes:
    """Damage the bytes of a torch checkpoint, or members of it with checksums kept right."""
    choice = rng.randrange(8)
    if choice < 2:
        return damage_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(members))
    name, data = members[at]
    compression = zipfile.ZIP_STORED
    match choice:
        case 2:
            members[at] = (name, damage_bytes(data, rng))
        case 3:
            members[at : at + 1] = rng.choice(([], [(name, data)] * 2, [(rng.choice(members)[0], data)]))
        case 4:
            members[at] = (
                rng.choice(("", "/", "../x", "state/data.pkl/", "x/data.pkl", "state/constants.pkl")),
                data,
            )
            compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
        case _:
            is_pickle = next(number for number, (name, _) in enumerate(members) if name.endswith("/data.pkl"))
            members[is_pickle] = (members[is_pickle][0], damage_pickle(members[is_pickle][1], rng))
    packed = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(packed, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    result = bytearray(packed.getvalue())
    if rng.random() < 0.2:  # a number in the directory
        directory = result.index(b"PK\x01\x02")
        at = rng.randrange(directory, len(result) - 4)
        result[at : at + 4] = struct.pack("<I", rng.choice(ODD_NUMBERS) % 2**32)
    return bytes(result)


def damage_pickle(content: bytes, rng: random.Random) -> bytes:
    """Drop, repeat, exchange, insert or change single operations of a pickle."""
    starts = [position for _, _, position in pickletools.genops(content)]
    operations = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, other = rng.randrange(len(operations)), rng.randrange(len(operations))
        numbers = [
            number for number, operation in enumerate(operations) if operation[:1] in (b"K", b"M", b"J", b"\x8a")
        ]
        texts = [number for number, operation in enumerate(operations) if operation[:1] in (b"X", b"\x8c")]
        match rng.randrange(8):
            case 0:
                del operations[at]
            case 1:
                operations.insert(at, operations[other])
            case 2:
                operations[at], operations[other] = operations[other], operations[at]
            case 3 | 4:
                operations.insert(at, rng.choice(ODD_OPERATIONS))
            case 5 if texts:
                text = str(rng.choice(ODD_VALUES)).encode("utf-8", "surrogatepass")
                operations[rng.choice(texts)] = b"X" + struct.pack("<I", len(text)) + text
            case _ if numbers:
                value = rng.choice((*ODD_NUMBERS, rng.randrange(64), -rng.randrange(64)))
                length = value.bit_length() // 8 + 1
                packed = b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)
                operations[rng.choice(numbers)] = packed
        if len(operations) < 2:
            break
    return b"".join(operations)


def damage_image(content: bytes, rng: random.Random) -> bytes:
    """Damage the bytes of a picture, or a chunk of a PNG with its checksum kept right."""
    if not content.startswith(b"\x89PNG") or rng.random() < 0.4:
        return damage_bytes(content, rng)
    chunks, at = [], 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    number = 0 if rng.random() < 0.5 else rng.randrange(len(chunks))
    kind, data = chunks[number]
    if kind == b"IHDR" and rng.random() < 0.7:
        sides = (0, 1, 7, 1000, 10_000, 60_000, 2**20, 2**31 - 1, 2**32 - 1)
        data = struct.pack(">2I", rng.choice(sides), rng.choice(sides)) + data[8:]
        chunks[number] = (kind, data)
    else:
        damaged = (kind, damage_bytes(data, rng))
        chunks[number : number + 1] = rng.choice(([], [damaged], [damaged], [(kind, data)] * 2))
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return content[:8] + b"".join(packed)


def _places(document: Any) -> Any:
    """Every (container, key) of a document, deepest last."""
    if isinstance(document, dict | list):
        for key in list(document) if isinstance(document, dict) else range(len(document)):
            yield document, key
            yield from _places(document[key])
