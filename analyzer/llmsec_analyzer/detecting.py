"""Detection put together for a command: configuration, installation key, scanner."""

from __future__ import annotations

from llmsec_analyzer.config import load_config
from llmsec_analyzer.detectors.exchanges import ExchangeDetector
from llmsec_analyzer.detectors.scanner import Scanner, report_fault
from llmsec_tap.install_key import install_key
from llmsec_tap.providers.credentials import fingerprinter


def make_detector(config: str | None = None) -> ExchangeDetector:
    """For replay and capture alike: `listener` goes to the pipeline, `detect` sees each exchange."""
    return ExchangeDetector(Scanner(load_config(config).security, fingerprinter(install_key()), on_fault=report_fault))
