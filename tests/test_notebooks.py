"""Every notebook runs and gives the outputs that stand in it; the script that says so tells what differs."""

import base64
import copy
import io
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def script(program):
    return program("documents.run_notebooks")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_gives_the_outputs_that_stand_in_it(name):
    command = [sys.executable, "-m", "scripts.documents.run_notebooks", "--check", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_notebook_is_in_the_list():
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert NAMES
    assert all(f"[{name}]({name}.ipynb)" in text for name in NAMES)


def notebook(*outputs):
    cell = nbformat.v4.new_code_cell("work()", outputs=list(outputs))
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Work"), cell])


def printed(text, name="stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


def drawn(pixels, software="Matplotlib 3.11"):
    file, told = io.BytesIO(), PngImagePlugin.PngInfo()
    told.add_text("Software", software)
    Image.fromarray(pixels).save(file, "png", pnginfo=told)
    data = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": "<Figure>"}
    return nbformat.v4.new_output("display_data", data=data)


def test_what_was_printed_otherwise_is_told_line_by_line(script):
    was, now = notebook(printed("a\nloss 1.25\n")), notebook(printed("b\nloss 1.25\n"))
    assert script.differences(was, copy.deepcopy(was), exact=True) == []
    (told,) = script.differences(was, now, exact=False)
    assert told.startswith("cell 2, stdout:\n")
    assert "\n-a\n+b" in told


def test_decimal_numbers_may_be_off_by_two_units_and_nothing_else(script):
    assert script.same_text("loss 1.25, 7 of 18", "loss 1.27, 7 of 18")
    assert script.same_text("-0.01 of it", "0.01 of it")
    assert not script.same_text("loss 1.25, 7 of 18", "loss 1.28, 7 of 18")
    assert not script.same_text("loss 1.25, 7 of 18", "loss 1.25, 8 of 18")
    assert not script.same_text("loss 1.25", "loss 1.250")
    assert not script.same_text("loss 1.25", "loss 1.25 1.25")
    assert script.differences(notebook(printed("1.25")), notebook(printed("1.26")), exact=True)


def test_a_picture_with_other_bytes_has_to_look_the_same(script):
    pixels = np.random.default_rng(0).integers(0, 255, (80, 160, 3), np.uint8)
    nearly = np.clip(pixels.astype(int) + 1, 0, 255).astype(np.uint8)
    moved = pixels.copy()
    moved[20:40, 20:60] = 0
    for other, looks in ((nearly, True), (moved, False), (pixels[:60], False)):
        found = script.differences(notebook(drawn(pixels)), notebook(drawn(other)), exact=False)
        assert (found == []) == looks
        assert script.differences(notebook(drawn(pixels)), notebook(drawn(other)), exact=True)


def test_another_matplotlib_may_move_letters_and_not_curves(script):
    white = np.full((200, 400, 3), 255, np.uint8)
    one, moved, other = white.copy(), white.copy(), white.copy()
    for start in range(20, 380, 12):  # letters
        one[180:188, start : start + 5] = moved[178:186, start + 3 : start + 8] = other[180:188, start : start + 5] = 0
    one[20:160, 100:140] = moved[20:160, 100:140] = other[80:160, 100:140] = 80  # a bar
    for pixels, same, looks in ((moved, False, True), (other, False, False), (moved, True, False)):
        there = drawn(pixels) if same else drawn(pixels, "Matplotlib 3.9")
        assert (script.differences(notebook(drawn(one)), notebook(there), exact=False) == []) == looks


def test_outputs_of_another_kind_are_told(script):
    (told,) = script.differences(notebook(printed("a")), notebook(printed("a"), printed("b", "stderr")), exact=False)
    assert told == "cell 2 shows ['stdout', 'stderr'], was ['stdout']"


def test_warnings_and_paths_of_the_machine_are_faults(script):
    assert list(script.faults(notebook(printed("a warning", "stderr"))))
    assert list(script.faults(notebook(printed("in /tmp/abc/model"))))
    assert list(script.faults(notebook(printed("<object at 0x7f01c0ffee>"))))
    assert not list(script.faults(notebook(printed("0.5 in runs/tmp/model and https://a.b/home/c"))))


def test_what_is_printed_in_pieces_is_one_output_and_metadata_are_gone(script):
    given = notebook(printed("a"), printed("b"), printed("c", "stderr"), printed("d"))
    given.cells[1].metadata["execution"] = {"iopub.execute_input": "2020-01-01T00:00:00Z"}
    found = script.strip(given)
    assert [output.text for output in found.cells[1].outputs] == ["ab", "c", "d"]
    assert found.cells[1].metadata == {}
    assert "version" not in found.metadata.language_info


def test_a_cell_that_fails_fails_the_check_and_writes_nothing(script, tmp_path, capsys):
    path = tmp_path / "broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    assert script.main([str(path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert path.read_bytes() == before
