"""Words of symbols such as %, € and °C, by language."""

import re
from collections.abc import Collection

from vits_trainer.utils.strings import GROUP_SPACES

SYMBOLS = "%&€$£+@°=§№"
"""In the order of the columns of the table below."""
_TABLE = """
ca| per cent | i | euro/euros | dòlar/dòlars | lliura/lliures | més | arrova | grau/graus | igual a | paràgraf | número
cs| procento/procenta/procent | a | euro/eura/eur | dolar/dolary/dolarů | libra/libry/liber | plus | zavináč |\
 stupeň/stupně/stupňů | rovná se | paragraf | číslo
da| procent | og | euro | dollar | pund | plus | snabel-a | grad/grader | er lig med | paragraf | nummer
de| Prozent | und | Euro | Dollar | Pfund | plus | at | Grad | gleich | Paragraf | Nummer
en| percent | and | euro/euros | dollar/dollars | pound/pounds | plus | at | degree/degrees | equals | section | number
es| por ciento | y | euro/euros | dólar/dólares | libra/libras | más | arroba | grado/grados | igual a | párrafo |\
 número
fi| prosentti/prosenttia | ja | euro/euroa | dollari/dollaria | punta/puntaa | plus | ät | aste/astetta |\
 on yhtä kuin | pykälä | numero
fr| pour cent | et | euro/euros | dollar/dollars | livre/livres | plus | arobase | degré/degrés | égale |\
 paragraphe | numéro
hu| százalék | és | euró | dollár | font | plusz | kukac | fok | egyenlő | paragrafus |
id| persen | dan | euro | dolar | pound | plus | | derajat | sama dengan | | nomor
it| per cento | e | euro | dollaro/dollari | sterlina/sterline | più | chiocciola | grado/gradi | uguale |\
 paragrafo | numero
nl| procent | en | euro | dollar | pond | plus | at | graad/graden | is gelijk aan | paragraaf | nummer
no| prosent | og | euro | dollar | pund | pluss | krøllalfa | grad/grader | er lik | paragraf | nummer
pl| procent | i | euro | dolar/dolary/dolarów | funt/funty/funtów | plus | małpa | stopień/stopnie/stopni |\
 równa się | paragraf | numer
pt| por cento | e | euro/euros | dólar/dólares | libra/libras | mais | arroba | grau/graus | igual a | parágrafo |\
 número
ro| la sută | și | euro | dolar/dolari | liră/lire | plus | arond | grad/grade | egal | paragraful | numărul
ru| процент/процента/процентов | и | евро | доллар/доллара/долларов | фунт/фунта/фунтов | плюс | собака |\
 градус/градуса/градусов | равно | параграф | номер
sk| percento/percentá/percent | a | euro/eurá/eur | dolár/doláre/dolárov | libra/libry/libier | plus | zavináč |\
 stupeň/stupne/stupňov | rovná sa | paragraf | číslo
sv| procent | och | euro | dollar | pund | plus | snabel-a | grad/grader | är lika med | paragraf | nummer
tr| yüzde | ve | euro | dolar | sterlin | artı | et | derece | eşittir | | numara
uk| відсоток/відсотки/відсотків | і | євро | долар/долари/доларів | фунт/фунти/фунтів | плюс | |\
 градус/градуси/градусів | дорівнює | параграф | номер
vi| phần trăm | và | euro | đô la | bảng Anh | cộng | a còng | độ | bằng | | số
"""
WORDS = {
    code: dict(zip(SYMBOLS, map(str.strip, words), strict=True))
    for code, *words in (line.split("|") for line in _TABLE.strip().splitlines())
}
"""Word of each symbol by language (num2words' names): singular/plural, or for 1/2-4/5 and more; "" if unknown."""
_SCALES = {
    "C": dict.fromkeys(WORDS, "Celsius") | {"ru": "Цельсия", "uk": "Цельсія"},
    "F": dict.fromkeys(WORDS, "Fahrenheit") | {"ru": "Фаренгейта", "uk": "Фаренгейта"},
}
_ONE = {"de": "ein", "es": "un", "it": "un"}
"""1 before a unit, where num2words gives the form for counting."""
_PERCENT_FIRST = frozenset({"tr"})
_ABBREVIATES_NUMBER = frozenset({"ca", "es", "fr", "it", "pt"})
"""Languages that write n° 5."""
_ENGLISH_SCALES = {"k": "thousand", "m": "million", "M": "million", "bn": "billion", "B": "billion"}
_LARGE = (
    "hundred thousand million billion trillion Million Millionen Milliarde Milliarden millions milliard milliards "
    "millón millones milione milioni miliardo miliardi milhão milhões miljoen miljard miljoner miljarder"
)
_SPACE = f"[ {GROUP_SPACES}]?"
_DIGITS = rf"\d+(?:[.,'’{GROUP_SPACES}]\d+)*"
_AMOUNT = rf"(?<![\d.,])(?P<number>{_DIGITS}(?:[-–]{_DIGITS})?)"
_LARGER = rf"(?P<large>\s(?:{'|'.join(_LARGE.split())})\b)?"
_QUANTITY = re.compile(
    rf"(?:\bUS)?(?P<first>[€$£]){_SPACE}{_AMOUNT}{_LARGER}|".replace("number", "paid").replace("large", "much")
    + rf"{_AMOUNT}{_LARGER}{_SPACE}(?P<unit>[€$£%](?!\d)|°{_SPACE}(?P<scale>[CF])\b|°)"
)
_PERCENTAGE = re.compile(rf"{_AMOUNT}{_SPACE}%")
_CENTS = re.compile(r"(?P<whole>[^-–]*\d)[.,](?P<cents>\d\d)")
_WHOLE = re.compile(r"\d{1,3}(?:\D\d{3})+|\d+")


def symbols_to_words(text: str, code: str, known: Collection[str] = ()) -> str:
    """Replaces symbols in ``text`` with words: 50% with 50 percent, $5 with 5 dollars, €3.50 with 3 euros 50.

    Args:
        text: with numbers as digits.
        code: num2words' name of the language; ``text`` is returned unchanged if :data:`WORDS` lacks it.
        known: symbols to keep.
    """
    words = {symbol: word for symbol, word in WORDS.get(code, {}).items() if word and symbol not in known}
    if "№" in words and "#" not in known:
        text = re.sub(rf"#(?={_SPACE}\d)", "№", text)
    if "№" in words and code in _ABBREVIATES_NUMBER:
        text = re.sub(rf"\b[nN][°º]{_SPACE}(?=\d)", "№ ", text)
    if words.keys().isdisjoint(text):
        return text
    if code in _PERCENT_FIRST:
        text = _PERCENTAGE.sub(r"%\g<number>", text)
    if code == "en":
        text = re.sub(
            rf"([€$£]{_DIGITS}) ?(k|[mM]|bn|B)\b", lambda match: f"{match[1]} {_ENGLISH_SCALES[match[2]]}", text
        )
    text = _QUANTITY.sub(lambda match: _quantity(match, words, code), text)
    text = re.sub(f"[{re.escape(''.join(words))}]", lambda match: _standalone(match, words, code), text)
    return re.sub(" {2,}", " ", text)


def _quantity(match: re.Match[str], words: dict[str, str], code: str) -> str:
    """Returns an amount with the word of its unit, in the order in which they are read."""
    unit = (match["first"] or match["unit"])[0]
    number, large = match["paid"] or match["number"], match["much"] or match["large"] or ""
    if unit not in words:
        return match[0]
    cents = _CENTS.fullmatch(number) if unit in "€$£" and not large else None
    whole, rest = (re.sub(r"\D", "", cents["whole"]), cents["cents"].replace("00", "")) if cents else (number, "")
    is_one = whole == "1" and not large and (unit != "%" or code == "de")
    amount = _ONE.get(code, whole) if is_one else whole
    scale = _SCALES[match["scale"]].get(code, "") if match["scale"] else ""
    parts = (f"{amount}{large}", _form(words[unit], "" if large else whole, code), scale, rest)
    before = " " if match.string[: match.start()][-1:].isalpha() else ""
    after = " " if match.string[match.end() :][:1].isalnum() else ""
    return before + " ".join(filter(None, parts)) + after


def _standalone(match: re.Match[str], words: dict[str, str], code: str) -> str:
    """Returns the word of a symbol without an amount, separated from its neighbours."""
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    return f"{' ' if before.strip() else ''}{_form(words[match[0]], '', code)}{' ' if after.isalnum() else ''}"


def _form(forms: str, number: str, code: str) -> str:
    """Returns the form of a word after ``number`` ("" = unknown): singular, plural, or for 2 to 4 and for more."""
    singular, *plurals = forms.split("/")
    if not plurals or number == "1":
        return singular
    if not _WHOLE.fullmatch(number):
        return plurals[0] if number and not re.search("[-–]", number) else plurals[-1]
    value = int(re.sub(r"\D", "", number)[-9:])
    tens, ones = value // 10 % 10, value % 10
    if code in ("ru", "uk") and ones == 1 and tens != 1:
        return singular
    is_few = value in (2, 3, 4) if code in ("cs", "sk") else ones in (2, 3, 4) and tens != 1
    return plurals[0] if is_few else plurals[-1]
