"""Pictures of a run: the right pictures in the right places, at the right size."""

import numpy as np
import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core import lettering, plots
from PIL import Image
from tiny_models import sample_map


def history_of(iterations=10, **settings):
    noise_map = sample_map()

    def brightness(images, prompts):
        return images.mean(dim=(1, 2, 3))

    noise = noise_map.randn(0).to(torch.float64)
    solver = core.GradientAscent(lr=0.3)
    result = core.optimize(noise_map, brightness, noise, solver, iterations=iterations, watch=(brightness,), **settings)
    return result.history


def flat(color, size=(8, 8)):
    return Image.new("RGB", size, color)


def test_pictures_have_the_images_values_clamped():
    images = torch.tensor([-0.5, 0.0, 0.5, 1.5]).view(1, 1, 1, 4).expand(2, 3, 2, 4)
    pictures = plots.to_pictures(images)
    assert len(pictures) == 2 and pictures[0].size == (4, 2)
    assert np.asarray(pictures[1])[0, :, 0].tolist() == [0, 0, 128, 255]


def test_a_contact_sheet_has_each_picture_in_its_place():
    colors = ["red", "lime", "blue", "black", "yellow"]
    sheet = plots.contact_sheet([flat(color) for color in colors], columns=3, size=20)
    assert sheet.size == (3 * 26 + 6, 2 * 26 + 6)
    for index, color in enumerate(colors):
        middle = (6 + 26 * (index % 3) + 10, 6 + 26 * (index // 3) + 10)
        assert sheet.getpixel(middle) == flat(color).getpixel((0, 0))


def test_captions_get_room_below_their_pictures():
    bare = plots.contact_sheet([flat("red")], size=100)
    captioned = plots.contact_sheet([flat("red")], ["one\ntwo"], size=100)
    assert captioned.height == bare.height + 34
    below = np.asarray(captioned)[110:, :, :]
    assert (below < 128).any() and not (np.asarray(bare)[107:] < 128).any()


@pytest.mark.parametrize("count, size", [(1, (64, 64)), (2, (530, 268)), (5, (534, 358))])
def test_a_batch_is_shown_side_by_side(count, size):
    assert plots.side_by_side(torch.zeros(count, 3, 64, 64)).size == size


def test_a_contact_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one picture"):
        plots.contact_sheet([])
    with pytest.raises(ValueError, match="0 x 8 pixels; expected one pixel or more"):
        plots.contact_sheet([Image.new("RGB", (0, 8))])
    with pytest.raises(ValueError, match="1 captions for 2 pictures"):
        plots.contact_sheet([flat("red"), flat("red")], ["one"])
    with pytest.raises(ValueError, match="columns is 0 and size 192; expected 1 or more"):
        plots.contact_sheet([flat("red")], columns=0)


@pytest.mark.parametrize("size, height", [
    ((4096, 10), 1), ((1, 1), 20), ((10, 4096), 80), ((1, 30_000), 80), ((30_000, 1), 1), ((20, 80), 80),
    ((20, 79), 79),
])  # fmt: skip
def test_a_picture_of_any_shape_fits_its_tile(size, height):
    """A tile is 20 pixels wide here; a picture four times as tall keeps its width, a taller one is scaled down."""
    sheet = plots.contact_sheet([flat("red", size), flat("blue", (8, 1))], size=20)
    assert sheet.size == (2 * 26 + 6, max(height, 2) + 12)
    assert sheet.getpixel((6, 6)) == (255, 0, 0) and sheet.getpixel((32, 6)) == (0, 0, 255)


@pytest.mark.parametrize("shape", [(1, 3, 10, 4096), (2, 3, 1, 1), (1, 3, 4096, 10), (1, 1, 4, 6)])
def test_images_of_any_shape_become_pictures(shape):
    pictures = plots.to_pictures(torch.full(shape, 0.5))
    assert [picture.size for picture in pictures] == [(shape[3], shape[2])] * shape[0]
    assert all(picture.mode == "RGB" and picture.getpixel((0, 0)) == (128, 128, 128) for picture in pictures)


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 4, 4, 4), (1, 3, 0, 4), (0, 3, 4, 4)])
def test_what_is_no_batch_of_pictures_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        plots.to_pictures(torch.zeros(shape))


def test_numbers_that_are_not_finite_are_drawn_as_the_nearest_that_are():
    images = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.5]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    (picture,) = plots.to_pictures(images)
    assert np.asarray(picture)[..., 0].tolist() == [[0, 255], [0, 128]]


LETTERS = {
    "accents": "caf\u00e9 \u017elu\u0165", "Cyrillic": "\u043a\u043e\u0442", "Greek": "\u03b3\u03ac\u03c4\u03b1",
    "Hebrew": "\u05d7\u05ea\u05d5\u05dc",
}  # fmt: skip


def drawn(text):
    """The pixels of a caption, below its picture."""
    return np.asarray(plots.contact_sheet([flat("white")], [text], size=400).convert("L"))[406:]


@pytest.mark.parametrize("text", LETTERS.values(), ids=LETTERS)
def test_letters_of_many_languages_are_drawn_each_as_itself(text):
    letters = [character for character in text if character != " "]
    assert len({drawn(letter).tobytes() for letter in letters}) == len(set(letters))
    assert lettering.readable(text) == text
    assert not any(np.array_equal(drawn(letter), drawn("\u25a1")) for letter in letters)


@pytest.mark.parametrize("text, expected", [
    ("cafe\u0301", "caf\u00e9"), ("\u732b 1", "\\u732b 1"), ("\uff23\uff41\uff54", "Cat"), ("a\tb\rc", "a b c"),
    ("a\0b", "a\\x00b"), ("\ud800", "\\ud800"), ("one\ntwo", "one\ntwo"), (3, "3"),
])  # fmt: skip
def test_what_the_font_lacks_is_written_in_a_readable_form(text, expected):
    assert lettering.readable(text) == expected
    assert (drawn(text) < 128).any()


def test_a_long_caption_stays_below_its_own_picture():
    sheet = np.asarray(plots.contact_sheet([flat("white")] * 2, ["W" * 100, ""], size=100).convert("L"))[106:]
    assert (sheet[:, :106] < 128).any() and not (sheet[:, 108:] < 128).any()
    assert lettering.fitted("short", 100) == "short" and lettering.fitted("W" * 100, 100).endswith("W..")
    assert lettering.fitted("WWW", 1) == ".."


@pytest.mark.parametrize("iterations, count", [(10, 8), (3, 8), (0, 8), (40, 5)])
def test_a_trajectory_holds_the_first_the_best_and_the_last(iterations, count):
    history = history_of(iterations, floor=0.0)
    for best in {0, iterations // 3, iterations}:
        history.best = [best, best]
        history.pictures = [torch.full((2, 3, 4, 4), 5 * i, dtype=torch.uint8) for i in range(iterations + 1)]
        history.best_picture = history.pictures[best]
        sheet = plots.trajectory(history, item=1, count=count, size=20)
        shown = [sheet.getpixel((x, 16))[0] for x in range(16, sheet.width, 26)]
        shown = [value // 5 for value in shown if value != 255]
        assert {0, best, iterations} <= set(shown) and shown == sorted(set(shown))
        assert len(shown) == min(count, iterations + 1)


def test_curves_draw_every_arm_and_grow_with_the_panels():
    free, kept = history_of(floor=0.0), history_of(regularizer=core.ProbabilityRegularizer())
    single = plots.curves(kept)
    both = plots.curves({"without": free, "with": kept})
    assert single.size == both.size and single.width > 1000
    assert np.abs(np.asarray(both, dtype=int) - np.asarray(single, dtype=int)).sum() > 10000
    free.rows = [{k: v for k, v in row.items() if not k.startswith("watch/")} for row in free.rows]
    assert plots.curves(free).width < single.width


def test_the_shell_picture_marks_where_noise_is_too_loud():
    noise = core.Noise.randn((1, 4, 16, 16), injected=3, seed=0)
    loud = noise.initial.clone()
    loud[..., :8, :8] *= 3
    pictures = [plots.shell(core.Noise(initial, noise.injected)) for initial in (noise.initial, loud)]
    assert pictures[0].size == pictures[1].size
    # Strong red is what no true noise has in the map of local energy, the third of four panels.
    panels = [np.asarray(picture)[60:300, 840:1100].astype(int) for picture in pictures]
    red = [((panel[..., 0] > 90) & (panel[..., 1] < 40) & (panel[..., 2] < 60)).sum() for panel in panels]
    assert red[1] > red[0] + 500


def test_the_diagnosis_picture_names_each_pictures_type():
    values = torch.tensor([1.0, 0.01])
    found = core.Diagnosis(values, values, values, values, values, values, None, ["none", "I"])
    assert plots.diagnosis(found).size[0] > plots.diagnosis(found).size[1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name", ["costs $5 and $6", r"$\foo$", "\u732b", "\u043a\u043e\u0442", "a_b^{c}", "", "x" * 300, "one\n" * 9]
)
def test_any_name_can_be_a_label(name):
    row = {"iteration": 0, "score": [0.5], "log_p": [-0.1], "log_p_initial": [-0.2], f"watch/{name}": [0.1]}
    history = core.History(reward=name, rows=[row, row | {"iteration": 1}])
    assert plots.curves({name: history, "other": history}).width == 1260


def test_labels_are_drawn_whatever_style_the_user_has():
    import matplotlib

    row = {"iteration": 0, "score": [0.5], "log_p": [-0.1], "log_p_initial": [-0.2]}
    history = core.History(reward="\u043a\u043e\u0442", rows=[row])
    plain = plots.curves(history)
    with matplotlib.rc_context({"font.family": "cmr10", "text.usetex": True, "figure.facecolor": "black"}):
        assert plots.curves(history).tobytes() == plain.tobytes()
        assert matplotlib.rcParams["text.usetex"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("key, value", [
    ("score", None), ("score", float("inf")), ("log_p", float("nan")), ("log_p_initial", -float("inf")),
    ("watch/brightness", None),
])  # fmt: skip
def test_a_value_that_is_no_number_leaves_a_gap(key, value):
    history = history_of(3, floor=0.0)
    whole = plots.curves(history, item=0)
    history.rows[1][key] = [value, value]
    history.best_row[key] = [value, value]
    broken = plots.curves(history, item=0)
    assert broken.size == whole.size and broken.tobytes() != whole.tobytes()
    assert plots.trajectory(history, item=1).width > 0
    history.rows = [row | {key: [value, value]} for row in history.rows]
    assert plots.curves({"a": history}).size == whole.size


def test_histories_that_watch_different_rewards_are_drawn_together():
    one, two = history_of(2, floor=0.0), history_of(2, floor=0.0)
    for rows in (two.rows, [two.best_row]):
        for row in rows:
            row["watch/other"] = row.pop("watch/brightness")
    assert plots.curves({"one": one, "two": two}).width == 4 * 420


def test_empty_histories_and_wrong_pictures_are_refused():
    history = history_of(1)
    for draw in (plots.curves, plots.trajectory):
        with pytest.raises(ValueError, match="the history is empty"):
            draw(core.History())
        for item in (2, -1):
            with pytest.raises(ValueError, match=rf"picture {item} of a batch of 2; expected 0 \.\. 1"):
                draw(history, item=item)
    with pytest.raises(ValueError, match="there is no history"):
        plots.curves({})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape, value", [
    ((1, 4, 1, 1), None), ((1, 4, 1, 64), None), ((1, 4, 64, 1), None), ((1, 16, 3, 8, 8), None),
    *(((1, 1, 2, 2), value) for value in (0.0, 1e4, float("nan"), float("inf"))),
])  # fmt: skip
def test_the_shell_of_any_noise_can_be_drawn(shape, value):
    noise = core.Noise.randn(shape, injected=1, seed=0)
    noise = noise if value is None else noise.map(lambda z: torch.full_like(z, value))
    assert plots.shell(noise).size == (1680, 340)


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (1, 2)])
def test_the_shell_is_of_one_picture(shape):
    with pytest.raises(ValueError, match=r"expected \(1, C, H, W\), one picture's"):
        plots.shell(core.Noise.randn(shape))


@pytest.mark.filterwarnings("error")
def test_a_diagnosis_without_a_gradient_is_drawn():
    unknown, known = torch.tensor([torch.nan, torch.inf]), torch.tensor([1.0, 0.0])
    found = core.Diagnosis(unknown, known, unknown, unknown, unknown, known, None, ["unknown", "II"])
    assert plots.diagnosis(found).width > plots.diagnosis(found).height


def test_start_and_best_stand_side_by_side_at_the_size_of_the_pictures():
    history = history_of()
    sheet = plots.before_after(history, size=24)
    # Two pictures a batch, 12 pixels a side, twice as large on the sheet, in rows below each other.
    for row, item in enumerate((0, 1)):
        for column, pictures in enumerate((history.first_picture, history.best_picture)):
            expected = plots.to_pictures(pictures[item : item + 1])[0].resize((24, 24), Image.Resampling.LANCZOS)
            top = 6 + row * (24 + 17 * 3 + 6)
            found = sheet.crop((6 + 30 * column, top, 30 + 30 * column, top + 24))
            assert np.array_equal(np.asarray(found), np.asarray(expected)), (item, column)
    assert plots.before_after(history, [1], size=24).height < sheet.height


def test_curves_say_what_their_limits_mean_and_where_a_floor_is():
    history = history_of()
    plain = np.asarray(plots.curves(history), dtype=int)
    history.floors = {history.watched[0]: [history.rows[0][f"watch/{history.watched[0]}"][0]] * 2}
    floored = np.asarray(plots.curves(history), dtype=int)
    width = plain.shape[1] // 3
    changed = [np.abs(floored - plain)[:, part * width : (part + 1) * width].sum() for part in range(3)]
    assert changed[1] > 10000 and changed[0] == changed[2] == 0
