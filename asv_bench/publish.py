#!/usr/bin/env python
"""Makes one page of the history that needs neither network nor server: `python asv_bench/publish.py`.

`asv publish` writes a site that takes its scripts from other hosts and its figures by requests, which a browser refuses
to a page opened from a disk. Here all that is put into index.html: the scripts and styles, which npm fetches, and the
figures, which jQuery then finds in the page. html/index.html can be opened, sent or put anywhere by itself.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from record import HERE, ROOT, read_config

PACKAGES = {
    "jquery": "3.3.1",
    "flot": "0.8.3",
    "flot-orderbars": "1.0.0",
    "stupid-table-plugin": "1.1.3",  # asv's own 1.0.1 is not on npm
    "blueimp-md5": "2.19.0",
    "bootstrap": "3.1.1",
}
# What asv's page asks other hosts for, by the last part of the address, and where the packages have it.
FILES = {
    "jquery-3.3.1.min.js": "jquery/dist/jquery.min.js",
    "jquery.flot.min.js": "flot/jquery.flot.js",
    "jquery.flot.time.min.js": "flot/jquery.flot.time.js",
    "jquery.flot.selection.min.js": "flot/jquery.flot.selection.js",
    "jquery.flot.categories.min.js": "flot/jquery.flot.categories.js",
    "jquery.flot.orderBars.js": "flot-orderbars/js/jquery.flot.orderBars.js",
    "stupidtable.min.js": "stupid-table-plugin/stupidtable.min.js",
    "md5.min.js": "blueimp-md5/js/md5.min.js",
    "bootstrap.min.js": "bootstrap/dist/js/bootstrap.min.js",
    "bootstrap.min.css": "bootstrap/dist/css/bootstrap.min.css",
}
SCRIPT = re.compile(r'<script\b[^>]*\bsrc="([^"]+)"[^>]*>\s*</script>')
STYLE = re.compile(r'<link\b[^>]*\bhref="([^"]+\.css)"[^>]*>')
FEED = re.compile(r'<link\b[^>]*\btype="application/atom\+xml"[^>]*>')
IMAGES = {"swallow.ico": "image/x-icon", "swallow.png": "image/png"}
# Answers a request for a file from the page itself, and not before the scripts that are to come.
FIGURES = """
(function (files) {
  $.ajaxTransport("+json", function (request) {
    var path = decodeURIComponent(request.url.split("?")[0]);
    return {
      send: function (headers, complete) {
        var answer = path in files ? [200, "success", {json: files[path]}] : [404, "error"];
        setTimeout(function () { complete.apply(null, answer); }, 0);
      },
      abort: function () {}
    };
  });
})(%s);
"""


def publish(results: Path, html: Path, branch: str) -> None:
    """asv's own site."""
    folders = {"repo": str(ROOT), "results_dir": str(results), "html_dir": str(html), "branches": [branch]}
    with tempfile.TemporaryDirectory() as name:
        config_file = Path(name) / "asv.conf.json"
        config_file.write_text(json.dumps({**read_config(), **folders}))
        command = [sys.executable, "-m", "asv", "publish", "--config", str(config_file)]
        subprocess.run(command, check=True)


def install(folder: Path) -> Path:
    """The packages, by npm, in a folder; nothing of theirs is run."""
    wanted = [f"{name}@{version}" for name, version in PACKAGES.items()]
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-save", "--prefix", str(folder)]
    subprocess.run(["npm", "install", *options, *wanted], check=True, stdout=subprocess.DEVNULL)
    return folder / "node_modules"


def as_one_page(html: Path, packages: Path) -> str:
    """The text of index.html with all that it loads inside."""

    def text_of(address: str) -> str:
        file = packages / FILES[address.rsplit("/", 1)[1]] if address.startswith("https://") else html / address
        return file.read_text()

    def script(text: str) -> str:
        return "<script>" + text.replace("</script", r"<\/script") + "</script>"

    files = {path.relative_to(html).as_posix(): json.loads(path.read_text()) for path in sorted(html.rglob("*.json"))}
    figures = script(FIGURES % json.dumps(files, separators=(",", ":")).replace("</", r"<\/"))
    page = FEED.sub("", (html / "index.html").read_text())
    for name, kind in IMAGES.items():
        data = base64.b64encode((html / name).read_bytes()).decode()
        page = page.replace(f'"{name}"', f'"data:{kind};base64,{data}"')
    page = page.replace("</head>", figures + "</head>")
    page = STYLE.sub(lambda found: f"<style>{text_of(found[1])}</style>", page)
    return SCRIPT.sub(lambda found: script(text_of(found[1])), page)


def main() -> None:
    parser = argparse.ArgumentParser(description="Publish the history as one page, html/index.html.")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the history is")
    parser.add_argument("--html", type=Path, default=HERE / "html", help="where the page goes")
    parser.add_argument("--branch", default="main", help="the branch whose commits are shown")
    arguments = parser.parse_args()
    publish(arguments.results.resolve(), arguments.html.resolve(), arguments.branch)
    with tempfile.TemporaryDirectory() as name:
        page = as_one_page(arguments.html, install(Path(name)))
    (arguments.html / "index.html").write_text(page)
    print(arguments.html / "index.html", f"{len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
