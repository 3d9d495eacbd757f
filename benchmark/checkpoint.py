"""Checkpoints: written in pieces, signed, and read only if this user wrote them.

A folder of an unfinished run holds checkpoint.json, which names the files in checkpoint/ that make
up one pickle of everything a run needs to go on, and is signed. Reading a pickle runs what is in
it; so nothing else of a results folder is one, and a checkpoint that came from elsewhere is
refused. A finished run has none.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
import random
import secrets
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

import custom_irl as irl
from benchmark import runs

SCHEMA = 1  # of checkpoint.json
PIECE_BYTES = 2**20


# ---------------------------------------------------------------------------------------- signature
def signing_key() -> bytes:
    """32 random bytes of this user's, made on the first call.

    In the home folder, so the nodes of a cluster share it; XDG_STATE_HOME is another place.

    Raises:
        UserError: if it cannot be kept there, or others may read it.
    """
    set_place = "set XDG_STATE_HOME to a folder of your own"
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        path = Path(state, "custom-irl", "signing.key")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            own = path.with_name(secrets.token_hex(8))
            own.touch(mode=0o600)
            own.write_bytes(secrets.token_bytes(32))
            with suppress(FileExistsError):
                os.link(own, path)  # whole or not at all, and never over another process's
            own.unlink()
        status = path.stat()
        key = path.read_bytes()
    except (OSError, RuntimeError) as error:
        raise irl.UserError(f"the key that signs checkpoints: {error}; {set_place}") from None
    if len(key) != 32 or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise irl.UserError(f"{path}: not 32 bytes of yours alone (mode 600); {set_place}")
    return key


def signature(content: dict) -> str:
    """HMAC-SHA256 of JSON. Only this user can have written what has it."""
    text = json.dumps(content, sort_keys=True)
    return hmac.new(signing_key(), text.encode(), "sha256").hexdigest()


def read_signed(path: Path, advice: str) -> dict:
    """The JSON that `write_signed` wrote; UserError ending in `advice` for any other."""
    try:
        content = runs.read_json(path)
    except irl.UserError as error:
        raise irl.UserError(f"{error}; {advice}") from None
    signed = str(content.pop("signature", ""))
    if not hmac.compare_digest(signed.encode(), signature(content).encode()):
        other = "not signed with this user's key, and reading it could run the code of whoever did"
        raise irl.UserError(f"{path}: {other}; go on where it was written, or {advice}")
    return content


def write_signed(path: Path, content: dict) -> None:
    irl.write_text(path, json.dumps({**content, "signature": signature(content)}) + "\n")


# -------------------------------------------------------------------------------------- checkpoints
def pieces_of(value: object) -> list[memoryview]:
    """`value` as torch.save writes it, in pieces; equal beginnings of large tensors are equal ones.

    torch.save writes an uncompressed zip with one record for each tensor. Each record of more than
    PIECE_BYTES is cut every PIECE_BYTES from its own start, so a tensor that rows were appended to
    differs in its last piece alone.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    data = buffer.getbuffer()
    cuts = [0]
    with zipfile.ZipFile(buffer) as archive:
        for record in archive.infolist():
            if record.file_size > PIECE_BYTES:
                # A local header: 30 bytes, the last four of them the lengths of name and extra.
                header = record.header_offset
                start = header + 30 + sum(struct.unpack_from("<HH", data, header + 26))
                end = start + record.file_size
                cuts += [*range(start, end, PIECE_BYTES), end]
    return [data[start:end] for start, end in zip(cuts, [*cuts[1:], len(data)])]


def save(folder: Path, identity: dict, training: irl.Training, envs) -> int:
    """Writes the pieces that are not there yet, then checkpoint.json; returns the bytes written.

    `envs` has the `history` and `restore` of resume.ReplayableVectorEnv. One pickle, so that
    objects which method and loop share stay shared. checkpoint.json is replaced last and at once;
    until then the pieces of the one before it stay.
    """
    generators = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    written = 0
    names = []
    for piece in pieces_of((training, envs.history, generators)):
        name = hashlib.sha256(piece).hexdigest()
        names.append(name)
        path = folder / runs.PIECES / name
        if not path.exists():
            with irl.replacing(path) as temporary:
                temporary.write_bytes(piece)
            written += len(piece)
    content = {"schema": SCHEMA, "identity": identity, "pieces": names}
    write_signed(folder / runs.CHECKPOINT, content)
    remove_pieces(folder, names)
    return written


def remove_pieces(folder: Path, but: list[str]) -> None:
    for path in (folder / runs.PIECES).iterdir():
        if path.name not in but:
            path.unlink()


def load(folder: Path, identity: dict, envs) -> irl.Training:
    """The training that `save` got; brings environments and generators to their state.

    Raises:
        UserError: if it is damaged, or not of this user, version and configuration.
    """
    path = folder / runs.CHECKPOINT
    advice = f"remove {path} to start this run again"
    content = read_signed(path, advice)
    if content.get("schema") != SCHEMA:
        expected = f"expected {SCHEMA}; {advice}"
        raise irl.UserError(f"{path}: schema {content.get('schema')}; {expected}")
    if content["identity"] != identity:
        raise irl.UserError(f"{path}: of another run than origin.json; {advice}")
    names = content["pieces"]
    try:
        pieces = [(folder / runs.PIECES / name).read_bytes() for name in names]
        for name, piece in zip(names, pieces):
            if hashlib.sha256(piece).hexdigest() != name:
                raise ValueError(f"piece {name} is damaged")
        # A pickle. This user wrote it: the signature is of the pieces' hashes.
        archive = io.BytesIO(b"".join(pieces))
        training, history, generators = torch.load(archive, weights_only=False)
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise irl.UserError(f"{path}: cannot be resumed from ({reason}); {advice}") from None
    remove_pieces(folder, names)
    envs.restore(history)
    random.setstate(generators[0])
    np.random.set_state(generators[1])
    torch.set_rng_state(generators[2])
    return training
