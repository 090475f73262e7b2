"""Our block in a description: replaced by us, kept from harm by nobody else's text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_rollout.domain.description import LONGEST, with_block

PERSON = "Trained on **2013**.\r\n\r\n- see <https://example.org>\n"
TEXTS = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<"), max_size=2_000)


def test_a_block_is_put_after_a_persons_text_and_replaced_in_its_place() -> None:
    """Twice is as once; a second rollout's verdict takes the place of the first one's."""
    first = with_block(PERSON, "Rollout aborted", "GuardrailWorse: bad")
    assert first is not None
    assert first.startswith(PERSON.rstrip())
    assert with_block(first, "Rollout aborted", "GuardrailWorse: bad") == first
    written_below = f"{first}\nMy own words below."
    second = with_block(written_below, "Rollout promoted", "ObjectiveBetter: good")
    assert second is not None
    assert "aborted" not in second
    assert second.startswith(PERSON.rstrip())
    assert second.endswith("\nMy own words below.")


def test_an_empty_description_holds_the_block_alone() -> None:
    """Nothing stands before or after it."""
    block = with_block("", "Rollout promoted", "why")
    assert block is not None
    assert block.startswith("<!-- fairlead:rollout ")
    assert block.endswith("<!-- /fairlead:rollout -->")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("<!-- /fairlead:rollout -->", "", id="no end"),
        pytest.param("<!-- fairlead:rollout ", "<!-- fairlead ", id="no start"),
        pytest.param(
            "GuardrailWorse: bad", "GuardrailWorse: bad; I looked, it is the cache", id="note"
        ),
        pytest.param(" -->\n", "0 -->\n", id="digest"),
    ],
)
def test_a_block_that_a_person_changed_is_their_text(old: str, new: str) -> None:
    """It stays as it is, and so does what follows it; ours comes after, and is found again."""
    first = with_block(PERSON, "Rollout aborted", "GuardrailWorse: bad")
    assert first is not None
    edited = first.replace(old, new, 1) + "\nMore of mine."
    assert edited != first
    second = with_block(edited, "Rollout promoted", "good")
    assert second is not None
    assert second.startswith(edited)
    third = with_block(second, "Rollout aborted", "again bad")
    assert third is not None
    assert third.startswith(edited)
    assert "good" not in third


def test_other_line_ends_do_not_make_our_block_a_persons() -> None:
    """An editor in a browser writes CRLF."""
    first = with_block(PERSON, "Rollout aborted", "bad")
    assert first is not None
    second = with_block(first.replace("\n", "\r\n"), "Rollout promoted", "good")
    assert second is not None
    assert "aborted" not in second


@given(person=TEXTS, why=st.text(max_size=9_000), padding=st.integers(0, 5_000))
def test_a_persons_text_is_never_cut_and_the_whole_fits(
    person: str, why: str, padding: int
) -> None:
    """Within MLflow's 5,000 characters, or no block at all; written again it changes nothing."""
    text = person + "x" * padding
    made = with_block(text, "Rollout promoted", why)
    if made is None:
        assert len(text) > LONGEST - 200
        return
    assert made.startswith(text.rstrip())
    assert len(made) <= LONGEST
    assert with_block(made, "Rollout promoted", why) == made
    assert with_block(made, "Rollout aborted", "") != made


def test_the_words_of_a_program_cannot_end_the_block() -> None:
    """A marker in a message is no marker."""
    why = "says <!-- /fairlead:rollout --> and <script>"
    first = with_block("", "Rollout aborted", why)
    assert first is not None
    assert first.count("<!-- /fairlead:rollout -->") == 1
    assert "<script>" not in first
    assert with_block(first, "Rollout promoted", "good").count("fairlead:rollout") == 2  # type: ignore[union-attr]
