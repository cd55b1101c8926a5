"""Accuracies that papers print, as data, each block with its source; `dassl.report.protocols.against` reads them."""
