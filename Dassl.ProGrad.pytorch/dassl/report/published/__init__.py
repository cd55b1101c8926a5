"""Accuracies that papers print, as data, each block with its source; `dassl.report.against` reads them."""
