"""Every link of the course and of the pages around it: the file is there, the anchor too, and so is the section that a text names."""

import functools
import re
from pathlib import Path

import pytest
from course_files import read_cells

ROOT = Path(__file__).parents[1]
COURSE = ROOT / "notebooks"
SOURCES = sorted((COURSE / "src").rglob("*.py"))
PAGES = [ROOT / "README.md", COURSE / "TEACHING.md", COURSE / "QUESTIONS.md"]
LINK = re.compile(r"(?<!\!)\[[^\]\n]*\]\(([^()\s]+)\)|!\[[^\]]*\]\(([^()\s]+)\)")


def without_code(text):
    """A page's words: no code blocks, no code spans, no formulas."""
    text = re.sub(r"^(```).*?^\1", "", text, flags=re.M | re.S)
    return re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$|`[^`]*`", "", text, flags=re.S)


@functools.cache
def words_of(path):
    """The text of a Markdown page, of a notebook's Markdown cells, or of those of its text form."""
    if path.suffix == ".ipynb":
        return "\n\n".join(cell["source"] for cell in read_cells(path) if cell["cell_type"] == "markdown")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        cells = [cell for cell in re.split(r"^# %% ?", text, flags=re.M) if cell.startswith("[markdown]")]
        return "\n\n".join(re.sub(r"^# ?", "", cell.removeprefix("[markdown]\n"), flags=re.M) for cell in cells)
    return text


def links_of(text):
    return [first or second for first, second in LINK.findall(without_code(text))]


def anchors_of(text):
    """What a code host calls the headings of a page."""
    headings = re.findall(r"^#{1,6} +(.+?) *$", re.sub(r"^(```).*?^\1", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def sections_of(notebook):
    """The numbers of a notebook's sections: {1, 2, ...}."""
    return {int(n) for n in re.findall(r"^## (\d+)  ", words_of(notebook), flags=re.M)}


def broken(page, text, folder):
    """The links of a text, read as lying in `folder`, that lead nowhere."""
    problems = []
    for link in links_of(text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else page
        if not target.exists():
            problems.append(f"{link}: no such file")
        elif anchor and anchor not in anchors_of(words_of(target)):
            problems.append(f"{link}: no such heading")
    return problems


def lying_at(source):
    """Where the notebook of a text form lies."""
    return (COURSE / source.relative_to(COURSE / "src")).parent


@pytest.mark.parametrize("page", [*PAGES, *SOURCES], ids=lambda path: path.name)
def test_every_link_leads_somewhere(page):
    text = words_of(page)
    folder = lying_at(page) if page.suffix == ".py" else page.parent
    assert not broken(page, text, folder)
    assert links_of(text) or page.suffix == ".py"               # the pages have links, or LINK does not find them any more


@pytest.mark.parametrize("page", [*PAGES, *SOURCES], ids=lambda path: path.name)
def test_every_section_that_is_named_exists(page):
    """[12](12_training.ipynb), sections 5 and 6: each of the numbers is a section of that notebook."""
    folder = lying_at(page) if page.suffix == ".py" else page.parent
    text = " ".join(words_of(page).split())
    for path, numbers in re.findall(r"\]\(([\w./]+\.ipynb)\),? sections? (\d+(?:(?:, | and | or )\d+)*)", text):
        missing = {int(n) for n in re.findall(r"\d+", numbers)} - sections_of(folder / path)
        assert not missing, f"{path} has no section {missing}"


@pytest.mark.parametrize("page", [*PAGES, *SOURCES], ids=lambda path: path.name)
def test_every_heading_that_is_quoted_exists(page):
    """[00](00_the_whole_picture.ipynb), section 13, "The gradients": that is what the section is called."""
    folder = lying_at(page) if page.suffix == ".py" else page.parent
    text = " ".join(words_of(page).split())
    for path, number, title in re.findall(r'\]\(([\w./]+\.ipynb)\),? (?:section (\d+), )?"([^"]+?),?"', text):
        section, places = "", []
        for heading in re.findall(r"^#+ +(.+?) *$", words_of(folder / path), flags=re.M):
            section = (re.match(r"\d+(?=  )", heading) or [section])[0]
            places += [section] * (title in heading)
        assert places and (not number or number in places), f"{path} has no {title!r} in section {number or 'any'}, but in {places}"


@pytest.mark.parametrize("page", SOURCES, ids=lambda path: path.name)
def test_every_notebook_leads_to_others(page):
    if page.parent.name == "src":
        words = words_of(page)
        assert ("**Read next.**" in words or "**Where to go next.**" in words) and "## Summary" in words
        assert any(link.endswith(".ipynb") for link in links_of(words))
        for solution in re.findall(r"`(solutions/[\w.]+)`", words):
            assert (COURSE / solution).exists(), solution


def test_the_questions_lead_to_cells():
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", PAGES[2].read_text(encoding="utf-8"), flags=re.M)[1:]
    assert len(rows) >= 14
    for question, answer in rows:
        assert re.search(r"\]\(\d\d_\w+\.ipynb\)", answer), f"no notebook answers {question!r}"


def test_a_wrong_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# A title\n\n## Set it up, now\n")
    good = "[a](there.md) [b](there.md#set-it-up-now) [c](https://example.org) `[no](link.md)`"
    assert broken(tmp_path / "x.md", good, tmp_path) == []
    assert len(links_of(good)) == 3
    wrong = "[a](away.md) and [b](there.md#set-up) ![a picture\nof something](away.png)"
    assert broken(tmp_path / "x.md", wrong, tmp_path) == ["away.md: no such file", "there.md#set-up: no such heading", "away.png: no such file"]
