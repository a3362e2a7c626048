"""A PDF page's image -> text: pypdfium2 renders it, tesseract reads it. Runs in the child; needs the extra `ocr`."""

from __future__ import annotations

import resource

from ingest.lines import RefusedError

_DOTS_PER_INCH = 300
_POINTS_PER_INCH = 72
_MAX_PIXELS = 40_000_000
# Else, unless Korean is named first, it writes a space behind each of a Korean word's syllables.
_TESSERACT_OPTIONS = "-c preserve_interword_spaces=1"


def read_image(path: str, page_index: int, password: str, languages: str, cpu_s: int) -> str:
    """The text that tesseract sees on a page, `page_index` from 0; `languages` as "eng+kor".

    Gives this process `cpu_s` more of CPU time, and tesseract as much of wall-clock time; it raises RuntimeError after
    that. Raises RefusedError where the libraries, the program or a language of it is not installed.
    """
    try:
        import pypdfium2
        import pytesseract
    except ImportError as error:
        raise RefusedError("ocr", str(error)) from error
    try:
        missing = set(languages.split("+")) - set(pytesseract.get_languages())  # tesseract would go on without them
    except pytesseract.TesseractNotFoundError as error:
        raise RefusedError("ocr", "there is no program `tesseract`") from error
    if missing:
        raise RefusedError("ocr", f"tesseract lacks the languages: {', '.join(sorted(missing))}")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + 1 + cpu_s, hard))
    with pypdfium2.PdfDocument(path, password=password or None) as document:
        page = document[page_index]
        width, height = page.get_size()
        fits = (_MAX_PIXELS / max(width * height, 1)) ** 0.5
        image = page.render(scale=min(_DOTS_PER_INCH / _POINTS_PER_INCH, fits), grayscale=True).to_pil()
    text: str = pytesseract.image_to_string(image, lang=languages, timeout=cpu_s, config=_TESSERACT_OPTIONS)
    return text
