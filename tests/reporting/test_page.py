"""The page in a real browser: it needs no network, draws what was read and tells numbers."""

import shutil

import pytest

from batch_renorm.reporting import compare
from batch_renorm.reporting.runs import find_runs
from batch_renorm.showing import page

FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --window-size=1280,900
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with chromedriver here (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    yield window
    window.quit()


def test_a_number_is_read_and_nothing_is_asked_of_a_network(browser, write, published, tmp_path):
    for seed, last in enumerate((60.0, 61.0)):
        curves = {"val_top1": [(100, 50.0), (300, last)], "loss": [(100, 2.0)]}
        write(tmp_path, "noniid_renorm", seed, curves, steps=300)
    write(tmp_path, "noniid_batchnorm", 0, {"val_top1": [(100, 48.0)]}, steps=300, step=100, state="running")
    runs = find_runs([tmp_path])[0]
    file = tmp_path / "page.html"
    file.write_text(page.page(compare.compare(runs, published, "glyphs"), runs, published), encoding="utf-8")
    browser.get(file.as_uri())
    chart = "const chart = document.querySelector('.plotly-graph-div');"
    lines = browser.execute_script(chart + "return chart.data.map(t => [t.name, t.yaxis, Array.from(t.y)])")
    ours = [values for name, _, values in lines if name == "Batch Renorm, mean of 2 seeds"]
    assert ours == [[50, 60.5]]
    assert [name for name, *_ in lines if "running" in name] == ["Batchnorm, seed 0, running at step 100 of 300"]
    assert any(name == "Batch Renorm, non-i.i.d., mean of 2 seeds" and values == [2] for name, _, values in lines)
    at = [name for name, *_ in lines].index("Batch Renorm, mean of 2 seeds")
    axis = browser.execute_script(chart + f"const t = chart.data[{at}]; return (t.xaxis || 'x') + (t.yaxis || 'y')")
    hover = f"Plotly.Fx.hover(chart, [{{curveNumber: {at}, pointNumber: 1}}], ['{axis}']);"
    assert "60.50 at step 300" in browser.execute_script(
        chart + hover + "return chart.querySelector('.hoverlayer').textContent"
    )
    asked = [line["message"] for line in browser.get_log("performance") if "requestWillBeSent" in line["message"]]
    assert not [line for line in asked if '"url":"http' in line]
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
