"""Vocabularies like those of public voices, by language; MMS-TTS English has the digits 0 to 6 only."""

from vits_trainer.text.tokenizer import VoiceTokenizer, tokenizer_from_symbols

SYMBOLS = {
    "eng": "k'zyudheswljm_pcgrfaiontbvxq -–0123456",
    "tur": "_ abcçdefgğhıijklmnoöprsştuüvyzâîû'’-",
    "vie": "_ aáàảãạăắằẳẵặâấầẩẫậbcdđeéèẻẽẹêếềểễệghiíìỉĩịklmnoóòỏõọôốồổỗộơớờởỡợpqrstuúùủũụưứừửữựvxyýỳỷỹỵ'-",
    "deu": "_ abcdefghijklmnopqrstuvwxyzäöüß'-",
    "kmr-script_latin": "_ abcçdeêfghiîjklmnopqrsştuûvwxyz'",
    "rus": "_ абвгдеёжзийклмнопрстуфхцчшщъыьэюя-«»",
    "ara": "_ ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤإئىة",
    "ell": "_ αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώ",
    "decomposed": "_ abcdefghijklmnopqrstuvwxyz\u0301\u0302\u0323",
}
TOKENIZERS = {
    language: tokenizer_from_symbols(list(symbols), language=None if language == "decomposed" else language)
    for language, symbols in SYMBOLS.items()
}


def read(tokenizer: VoiceTokenizer, text: str) -> str:
    """Returns the characters that the tokenizer reads ``text`` as."""
    return "".join(character for character in tokenizer.resolve(text)[0] if character in tokenizer.encoder).strip()
