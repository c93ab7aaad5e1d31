"""Plant one fault at a time in a stored notebook: strict nbval must see it, and an honest notebook must pass."""

import base64
import io

import nbformat
import pytest
from PIL import Image

SHOW_PICTURE = """
import base64, io
from IPython.display import display
from PIL import Image
buffer = io.BytesIO()
Image.new("RGB", (64, 48), {color!r}).save(buffer, format="PNG")
display({{"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": "a plain field"}}, raw=True)
"""


def encoded_picture(color, size=(64, 48), **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG", **options)
    return base64.b64encode(buffer.getvalue()).decode()


def picture_output(encoded):
    data = {"image/png": encoded, "text/plain": "a plain field"}
    return nbformat.v4.new_output("display_data", data=data)


@pytest.fixture
def outcome(pytester):
    """Run pytest with strict nbval on a notebook of one cell; return the counts of its outcomes."""

    def run(source, outputs, execution_count=1):
        cell = nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=execution_count)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), pytester.path / "planted.ipynb")
        flags = ("-p", "strict_nbval", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=60")
        # In this process, so that the plugin is the one imported here; the kernel is a process of its own.
        return pytester.inline_run(*flags, "planted.ipynb").listoutcomes()

    return run


def test_an_honest_notebook_passes(outcome):
    source = SHOW_PICTURE.format(color="crimson")
    passed, _, failed = outcome(source, [picture_output(encoded_picture("crimson"))])
    assert (len(passed), len(failed)) == (1, 0)


def test_a_picture_encoded_in_another_way_passes(outcome):
    stored = encoded_picture("crimson", compress_level=0)
    passed, _, _ = outcome(SHOW_PICTURE.format(color="crimson"), [picture_output(stored)])
    assert len(passed) == 1


def test_a_replaced_picture_fails(outcome):
    stored = picture_output(encoded_picture("navy"))
    _, _, failed = outcome(SHOW_PICTURE.format(color="crimson"), [stored])
    assert "picture 1 of the cell differs" in failed[0].longreprtext


def test_a_picture_of_another_size_fails(outcome):
    stored = picture_output(encoded_picture("crimson", size=(64, 96)))
    _, _, failed = outcome(SHOW_PICTURE.format(color="crimson"), [stored])
    assert "(64, 96) as stored" in failed[0].longreprtext


def test_a_cell_that_was_never_run_fails(outcome):
    _, _, failed = outcome("print(1)", [], execution_count=None)
    assert "never run" in failed[0].longreprtext


def test_changed_text_fails(outcome):
    stored = nbformat.v4.new_output("stream", name="stdout", text="the lantern is red\n")
    assert len(outcome("print('the lantern is blue')", [stored])[2]) == 1


def test_times_addresses_and_late_digits_may_differ(outcome):
    stored = nbformat.v4.new_output(
        "stream", name="stdout", text="0.1234567 after 3.2 s at <object at 0x7f00deadbeef>\n"
    )
    passed, _, _ = outcome("print('0.1239 after 11.75 s at <object at 0x7fffdeadbee0>')", [stored])
    assert len(passed) == 1


def test_early_digits_may_not_differ(outcome):
    stored = nbformat.v4.new_output("stream", name="stdout", text="mass 0.1234567\n")
    assert len(outcome("print('mass 0.1334567')", [stored])[2]) == 1
