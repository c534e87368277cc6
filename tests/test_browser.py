"""The report in a real browser: it opens by itself and offline, its filters filter, and hostile texts are texts."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from persyn.messages import as_text, user_message
from persyn.project.snapshot import open_snapshot
from persyn.report import build_report
from tests.support.chromium import missing, open_chromium, open_page, requests
from tests.support.invented import made_up, report_of
from tests.support.texts import HOSTILE
from tests.support.tiny import ROOT

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def page_of(tables: dict[str, Any], folder: Path) -> Path:
    """The report of a project of these tables."""
    page = folder / "report.html"
    page.write_text(report_of(tables))
    return page


@pytest.fixture(scope="module")
def tables() -> dict[str, Any]:
    """60 prompts, half of them parallel, 4 teachers, 2 strategies; two responses were cut at max_tokens."""
    tables = made_up(60, 4, 100, parallel=0.5)
    first = tables["responses"]["teacher-1"]
    cut = first["prompt_id"].is_in(first["prompt_id"].head(2).implode())
    finish = pl.when(cut).then(pl.lit("length")).otherwise("finish_reason").cast(first["finish_reason"].dtype)
    tables["responses"]["teacher-1"] = first.with_columns(finish_reason=finish)
    return tables


@pytest.fixture(scope="module")
def page(tables: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of that project."""
    return page_of(tables, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def chromium() -> Iterator["Chrome"]:
    """One browser for all tests."""
    with open_chromium() as driver:
        yield driver


class Browser:
    """What a reader can do on the page, and what is then seen."""

    def __init__(self, driver: "Chrome", page: Path, address: str = "") -> None:
        self.driver = driver
        open_page(driver, page, address)

    def all(self, selector: str) -> list["WebElement"]:
        return self.driver.find_elements("css selector", f"#browse {selector}")

    def one(self, selector: str) -> "WebElement":
        (found,) = self.all(selector)
        return found

    def click(self, selector: str) -> None:
        """Scroll to it, away from what sticks to the top of the window, and click."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.one(selector))
        self.one(selector).click()
        self.settle()

    def type(self, name: str, text: str) -> None:
        self.one(f"[name={name}]").clear()
        self.one(f"[name={name}]").send_keys(text)
        self.settle(200)

    def choose(self, name: str, value: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.one(f"[name={name}]")).select_by_value(value)
        self.settle()

    def settle(self, milliseconds: int = 0) -> None:
        """Let the page do what it has put off; typing is searched for when it pauses."""
        self.driver.execute_async_script("setTimeout(arguments[1], arguments[0])", milliseconds)

    def count(self) -> str:
        return self.one("#browse-count").text

    def ids(self) -> list[str]:
        """The prompts of every page, in the order in which they are shown."""
        while self.one("#browse-previous").is_enabled():
            self.click("#browse-previous")
        found: list[str] = []
        while True:
            found += [one.text for one in self.all(".browse-id")]
            if not self.one("#browse-next").is_enabled():
                return found
            self.click("#browse-next")


@pytest.fixture
def browser(chromium: "Chrome", page: Path) -> Browser:
    """The page, freshly opened."""
    return Browser(chromium, page)


def console(driver: "Chrome") -> list[str]:
    """Every line of the console since this was last asked."""
    return [entry["message"] for entry in driver.get_log("browser")]


def opens_by_itself(chromium: "Chrome", page: Path) -> Browser:
    """Open a page and every prompt on it: not a line in the console, not a request but for the file."""
    console(chromium)
    requests(chromium)
    browser = Browser(chromium, page)
    for button in browser.all(".browse-open"):
        button.click()
    assert console(chromium) == []
    asked = set(requests(chromium)) - {"about:blank"}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert chromium.execute_script("return performance.getEntriesByType('resource').map(one => one.name)") == []
    return browser


def test_it_opens_by_itself_without_an_error(chromium: "Chrome", page: Path) -> None:
    assert opens_by_itself(chromium, page).count() == "60 of 60 prompts"


def test_the_report_of_this_project_opens(
    chromium: "Chrome", tables: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parameters and metrics are in git, so every chart is drawn; its tables may not have been made here."""
    monkeypatch.chdir(ROOT)
    page = tmp_path / "report.html"
    with open_snapshot() as run:
        run = run.replace(prompts=tables["prompts"]) if run.prompts is None else run
        page.write_text(build_report(run))
    opens_by_itself(chromium, page)
    assert len(chromium.find_elements("css selector", "figure svg")) > 5


def test_search_is_for_all_words_in_prompts_responses_and_ids(browser: Browser, tables: dict[str, Any]) -> None:
    row = tables["prompts"].row(7, named=True)
    browser.type("q", row["prompt_id"].upper())
    assert (browser.count(), browser.ids()) == ("1 of 60 prompts", [row["prompt_id"]])
    assert browser.one(".browse-details > .browse-text").text == as_text(row["prompt"]).strip()

    answer = tables["responses"]["teacher-2"].row(3, named=True)
    browser.type("q", " ".join(reversed(answer["response"][5:60].split())))
    assert answer["prompt_id"] in browser.ids()
    browser.type("q", "no such words")
    assert (browser.count(), browser.ids()) == ("0 of 60 prompts", [])


def test_filters_show_what_the_tables_say(browser: Browser, tables: dict[str, Any]) -> None:
    prompts, routes = tables["prompts"], tables["routes"]

    def expect(rows: pl.DataFrame) -> None:
        assert browser.ids() == rows["prompt_id"].unique().sort().to_list()
        assert browser.count() == f"{rows['prompt_id'].n_unique()} of 60 prompts"
        browser.click("[type=reset]")
        assert browser.count() == "60 of 60 prompts"

    for name in ("domain", "source"):
        value = prompts[name][0]
        browser.choose(name, value)
        expect(prompts.filter(pl.col(name) == value))
    browser.click("[name=parallel]")
    expect(prompts.filter("parallel"))
    both = routes["persyn"].join(routes["random"], on="prompt_id")
    browser.click("[name=disagree]")
    expect(both.filter(pl.col("teacher") != pl.col("teacher_right")))

    browser.choose("teacher", "teacher-2")
    expect(both.filter((pl.col("teacher") == "teacher-2") | (pl.col("teacher_right") == "teacher-2")))
    browser.choose("strategy", "random")
    browser.choose("teacher", "teacher-2")
    expect(routes["random"].filter(teacher="teacher-2"))
    browser.type("low", "0.5")
    browser.type("high", "1.2")
    expect(routes["persyn"].filter(pl.col("margin").is_between(0.5, 1.2)))
    browser.choose("strategy", "random")
    browser.type("high", "9")
    expect(routes["random"].head(0))

    browser.choose("domain", "math")
    browser.click("[name=parallel]")
    browser.choose("strategy", "persyn")
    browser.choose("teacher", "teacher-1")
    expect(prompts.filter("parallel", domain="math").join(routes["persyn"].filter(teacher="teacher-1"), on="prompt_id"))


def test_two_teachers_of_a_prompt(chromium: "Chrome", tmp_path: Path) -> None:
    """The stronger one's margin counts, and one row of two that is trained on is enough."""
    tables = made_up(4, 2, 30)
    ids = tables["prompts"]["prompt_id"].sort().to_list()
    leads = {ids[0]: 0.3, ids[1]: 0.01, ids[2]: 0.2, ids[3]: 0.1}
    rows = [
        (identity, name, strength, sign * lead)
        for identity, lead in leads.items()
        for name, strength, sign in (("teacher-1", lead, 1), ("teacher-2", 0.0, -1))
    ]
    routes = pl.DataFrame(rows, schema=tables["routes"]["persyn"].schema, orient="row")
    answers = pl.concat(tables["responses"].values())
    kept = tables["dataset"]["persyn"].clear()
    of = pl.DataFrame({"prompt_id": ids[:3], "teacher": ["teacher-1", "teacher-2", "teacher-1"]})
    tables |= {
        "routes": {"persyn": routes},
        "routed": {"persyn": answers},
        "dataset": {"persyn": pl.concat([kept, of], how="diagonal")},
    }
    browser = Browser(chromium, page_of(tables, tmp_path))
    browser.choose("sort", "unsure")
    assert browser.ids() == [ids[1], ids[3], ids[2], ids[0]]
    browser.type("low", "0")
    browser.type("high", "0.15")
    assert browser.ids() == [ids[1], ids[3]]
    browser.click("[type=reset]")
    browser.choose("problem", "dropped")
    assert browser.ids() == [ids[3]]


def test_what_went_wrong(browser: Browser, tables: dict[str, Any]) -> None:
    defects, routes, first = tables["defects"], tables["routes"], tables["responses"]["teacher-1"]
    expected = {
        "length": first.filter(finish_reason="length")["prompt_id"],
        "refusal": defects.filter("refusal")["prompt_id"],
        "dropped": pl.concat(
            table.join(tables["dataset"][strategy], on="prompt_id", how="anti")["prompt_id"]
            for strategy, table in routes.items()
        ),
    }
    for problem, ids in expected.items():
        browser.choose("problem", problem)
        assert browser.ids() == ids.unique().sort().to_list()
        assert len(browser.ids()) > 0
    browser.choose("problem", "refusal")
    browser.choose("strategy", "persyn")
    refused = defects.filter("refusal").join(routes["persyn"], on=["prompt_id", "teacher"])
    assert browser.ids() == refused["prompt_id"].sort().to_list()
    options = [option.text for option in browser.all("[name=problem] option")]
    assert f"cut at max tokens ({len(expected['length'])})" in options
    assert not any("no answer" in option for option in options)


def test_sorting(browser: Browser, tables: dict[str, Any]) -> None:
    margins = dict(tables["routes"]["persyn"].select("prompt_id", pl.col("margin").round(3)).rows())
    browser.choose("sort", "unsure")
    assert [margins[identity] for identity in browser.ids()] == sorted(margins.values())
    browser.choose("sort", "sure")
    assert [margins[identity] for identity in browser.ids()] == sorted(margins.values(), reverse=True)
    spread = pl.col("reward").max() - pl.col("reward").min()
    apart = tables["rewards"].group_by("prompt_id").agg(spread=spread).sort("spread")["prompt_id"].to_list()
    browser.choose("sort", "apart")
    assert browser.ids()[: len(apart)] == apart[::-1]
    browser.choose("sort", "alike")
    assert browser.ids()[: len(apart)] == apart


def test_pages_and_an_address_that_gives_the_view_again(browser: Browser, page: Path, chromium: "Chrome") -> None:
    assert [browser.one(f"#browse-{name}").is_enabled() for name in ("previous", "next")] == [False, True]
    assert len(browser.all(".browse-id")) == 25
    browser.click("[name=disagree]")
    browser.choose("sort", "unsure")
    browser.click("#browse-next")
    assert browser.one("#browse-page").text == "page 2 of 2"
    seen = [one.text for one in browser.all(".browse-id")]
    address = chromium.current_url.removeprefix(page.as_uri())
    assert address == "#browse?sort=unsure&disagree=on&page=2"

    again = Browser(chromium, page, address)
    assert [one.text for one in again.all(".browse-id")] == seen
    assert again.one("[name=disagree]").is_selected()
    again.click("[type=reset]")
    assert chromium.current_url == page.as_uri() + "#browse"
    wrong = Browser(chromium, page, "#browse?domain=none&page=99&sort=x&low=y")
    assert wrong.count() == "60 of 60 prompts"
    assert console(chromium) == []


def test_a_prompt_opens_by_keyboard_and_shows_every_response(browser: Browser, tables: dict[str, Any]) -> None:
    from selenium.webdriver.common.keys import Keys

    rewards = tables["rewards"]
    chosen = rewards["prompt_id"][0]
    browser.type("q", chosen[:-1])
    button = browser.one(".browse-open")
    assert (button.get_attribute("aria-expanded"), browser.all(".browse-card")) == ("false", [])
    browser.one("[type=reset]").send_keys(Keys.TAB)
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert (button.get_attribute("aria-expanded"), browser.driver.switch_to.active_element) == ("true", button)

    best = rewards.filter(prompt_id=chosen).sort("reward", descending=True)
    assert [one.text for one in browser.all(".browse-card h4")] == best["teacher"].to_list()
    assert browser.one(".browse-card-best .browse-best").text == "highest reward"
    assert browser.one(".browse-card-best h4").text == best["teacher"][0]
    for card, row in zip(browser.all(".browse-card"), best.iter_rows(named=True), strict=True):
        answer = tables["responses"][row["teacher"]].filter(prompt_id=chosen).row(0, named=True)
        assert answer["response"].strip() in card.text
        shown = card.find_element("css selector", "dl").text.split()
        assert shown[::2] == ["reward", "quality", "learnability", "tokens"]
        for name, value in zip(shown[:6:2], shown[1:6:2], strict=True):
            assert float(value.replace("\N{MINUS SIGN}", "-")) == pytest.approx(row[name], abs=1e-3)
        assert int(shown[7]) == answer["num_response_tokens"]
    lines = [line.text.split() for line in browser.all(".browse-details tbody tr")]
    for (strategy, table), line in zip(tables["routes"].items(), lines, strict=True):
        route = table.filter(prompt_id=chosen).row(0, named=True)
        kept = chosen in tables["dataset"][strategy]["prompt_id"]
        assert [*line[:2], line[4]] == [strategy, route["teacher"], "yes" if kept else "no:"]
        if route["margin"] is None:
            assert line[2:4] == ["\N{EN DASH}"] * 2
        else:
            assert float(line[3]) == pytest.approx(route["margin"], abs=1e-3)

    button.send_keys(Keys.SPACE)
    assert (button.get_attribute("aria-expanded"), browser.all(".browse-card")) == ("false", [])


def test_hostile_texts_are_shown_as_texts(chromium: "Chrome", tmp_path: Path) -> None:
    tables = made_up(len(HOSTILE), 2, 30)
    tables["prompts"] = (
        tables["prompts"]
        .sort("prompt_id")
        .with_columns(
            prompt=pl.Series([user_message(text) for text in HOSTILE]),
            source=pl.Series(HOSTILE),
            license=pl.Series(HOSTILE),
            reference=pl.Series(HOSTILE),
        )
    )
    named = {"teacher-1": HOSTILE[0], "teacher-2": HOSTILE[1]}
    text = dict(zip(tables["prompts"]["prompt_id"], HOSTILE, strict=True))

    def spoil(table: pl.DataFrame) -> pl.DataFrame:
        if "response" in table.columns:
            table = table.with_columns(response=pl.col("prompt_id").replace_strict(text))
        return table.with_columns(pl.col("teacher").replace_strict(named))

    for name, table in tables.items():
        if name in ("rewards", "defects"):
            tables[name] = spoil(table)
        elif name != "prompts":
            tables[name] = {named.get(key, f"{key} {HOSTILE[2]}"): spoil(one) for key, one in table.items()}
    console(chromium)
    requests(chromium)
    browser = Browser(chromium, page_of(tables, tmp_path))
    for button in browser.all(".browse-open"):
        button.click()
    shown = [
        "<img src=x onerror=window.pwned=1>",
        "</script><script>window.pwned=1</script>",
        r"\x1b[31mred\x1b[0m and \x00 and \x0d",
        '=HYPERLINK("http://x")',
        "{{7*7}} {% raw %} $x^2$",
        r"\u{202e}drawrof\u{202c} \u{2066} \u{feff} \u{200b}",
        "\N{GRINNING FACE} é",
    ]
    for item, expected in zip(browser.all(".browse-list > li"), shown, strict=True):
        assert item.find_element("css selector", ".browse-start").text == expected
        texts = [one.text for one in item.find_elements("css selector", ".browse-text")]
        assert texts == [expected] * 4  # the prompt, its reference, two responses
        assert item.find_element("css selector", ".browse-details .browse-note span").text == expected
        assert sorted(one.text for one in item.find_elements("css selector", "h4")) == sorted(shown[:2])
    assert {option.text.rsplit(" (", 1)[0] for option in browser.all("[name=source] option")} >= set(shown)
    [second] = [identity for identity, asked in text.items() if asked == HOSTILE[1]]
    chosen = next(iter(tables["routes"].values())).filter(prompt_id=second)["teacher"][0]
    browser.choose("teacher", chosen)
    browser.choose("source", HOSTILE[1])
    browser.type("q", HOSTILE[1])
    assert browser.count() == f"1 of {len(HOSTILE)} prompts"
    assert chromium.execute_script("return typeof window.pwned") == "undefined"
    assert browser.all(":is(img, script, iframe, a)") == []
    assert console(chromium) == []
    assert {url.split(":")[0] for url in requests(chromium)} <= {"about", "file", "data"}


def test_a_large_project_stays_small_and_opens(chromium: "Chrome", tmp_path: Path) -> None:
    tables = made_up(5200, 19, 1500, parallel=0.3)
    page = page_of(tables, tmp_path)
    assert page.stat().st_size < 5_000_000
    browser = Browser(chromium, page)
    assert browser.count() == "5,000 of 5,000 prompts"
    assert "5,000 of 5,200 prompts" in browser.all(".browse-note")[0].text
    browser.click("[name=parallel]")
    browser.all(".browse-open")[0].click()
    assert len(browser.all(".browse-card")) == 19
    assert "… cut here at" in browser.all(".browse-card")[0].text


def test_an_old_browser_is_told_what_it_lacks(page: Path) -> None:
    with open_chromium() as driver:
        source = "delete window.DecompressionStream"
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
        driver.get(page.as_uri())
        assert "lacks DecompressionStream" in driver.find_element("id", "browse-status").text
        assert console(driver) == []
