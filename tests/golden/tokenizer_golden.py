#!/usr/bin/env python3
"""Makes tests/golden/tokenizer.jsonl and tests/golden/tokenizer_chat.jsonl: texts and conversations with the ids that Hugging Face
tokenizers (and each model's own template, by jinja2) give for both test models.

    python3 tests/golden/tokenizer_golden.py SMOLLM2.gguf QWEN2.5.gguf

Texts are written here, or mixed from them by a seeded generator. Needs: pip install tokenizers gguf jinja2
"""
import json
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "reference"))

import tokenizer_chat  # noqa: E402
from tokenizer_hf import Model  # noqa: E402

SEED = 20240501

SENTENCES = """\
The quick brown fox can't jump over 13 lazy dogs; they've run 42.5 km, haven't they?
Der Vogel fliegt elftausend Kilometer, ohne Halt. Größe, Straße, Übermut!
L'oiseau vole onze mille kilomètres sans s'arrêter ; c'est déjà l'été.
El pájaro vuela once mil kilómetros sin parar. ¿Cómo está el niño? ¡Mañana!
O pássaro voa onze mil quilômetros sem parar: coração, ações, você.
L'uccello vola undicimila chilometri senza sosta, perché è già estate.
De vogel vliegt elfduizend kilometer zonder te stoppen; 's ochtends vroeg.
Fågeln flyger elva tusen kilometer utan uppehåll. Å, ä och ö.
Lintu lentää yksitoista tuhatta kilometriä pysähtymättä yötä päivää.
Fuglen flyver elleve tusind kilometer uden ophold; på æbleø.
Ptak leci jedenaście tysięcy kilometrów bez przerwy. Zażółć gęślą jaźń.
Pták letí jedenáct tisíc kilometrů bez zastávky. Příliš žluťoučký kůň.
A madár tizenegyezer kilométert repül megállás nélkül. Árvíztűrő tükörfúrógép.
Pasărea zboară unsprezece mii de kilometri fără oprire; țară, știință.
Kuş on bir bin kilometreyi durmadan uçar. Iğdır'da ılık bir İstanbul akşamı.
Con chim bay mười một nghìn cây số không nghỉ. Tiếng Việt rất đẹp.
Burung itu terbang sebelas ribu kilometer tanpa henti.
Птица летит одиннадцать тысяч километров без остановки. Съешь же ещё этих булок.
Птах летить одинадцять тисяч кілометрів без зупинки; їжа, ґанок.
Птицата лети единадесет хиляди километра без спиране.
Το πουλί πετά έντεκα χιλιάδες χιλιόμετρα χωρίς στάση.
הציפור עפה אחד עשר אלף קילומטרים בלי עצירה. שָׁלוֹם
يطير الطائر أحد عشر ألف كيلومتر دون توقف. ١٢٣٤٥ مُحَمَّد
پرنده یازده هزار کیلومتر بی‌وقفه پرواز می‌کند. ۱۲۳۴
पक्षी बिना रुके ग्यारह हज़ार किलोमीटर उड़ता है। १२३४
পাখিটি না থেমে এগারো হাজার কিলোমিটার উড়ে। ১২৩
பறவை நிற்காமல் பதினோராயிரம் கிலோமீட்டர் பறக்கிறது.
పక్షి ఆగకుండా పదకొండు వేల కిలోమీటర్లు ఎగురుతుంది.
ปลาและนกบินหนึ่งหมื่นหนึ่งพันกิโลเมตรโดยไม่หยุด ๑๒๓
鸟儿不停地飞了一万一千公里。你好，世界！
鳥兒不停地飛了一萬一千公里。「繁體字」
鳥は止まらずに一万一千キロメートル飛ぶ。カタカナとひらがな、ﾊﾝｶｸ。
새는 쉬지 않고 만 천 킬로미터를 난다. 한국어 123
ჩიტი გაუჩერებლად დაფრინავს თერთმეტი ათას კილომეტრს.
Թռչունը թռչում է տասնմեկ հազար կիլոմետր առանց կանգառի։
ወፉ ሳያቆም አሥራ አንድ ሺህ ኪሎ ሜትር ይበርራል።
ပျံလွှားငှက်သည် မရပ်မနား ပျံသန်းသည်။
Cafe\u0301 re\u0301sume\u0301 A\u030angstro\u0308m o\u0323\u0302 \u1100\u1161\u11a8 \u212b \u0958 \u1e9b\u0323
I'm, you're, we've, they'll, he'd, it's; I'M, YOU'RE, WE'VE, THEY'LL, HE'D, IT'S, 'S, don't't
😀👍🏽 🇺🇸🇯🇵 👩‍👩‍👧‍👦 ❤️ ☃ \u200b zero\u200dwidth \ufeff bom
1 12 123 1234 12345 1,234,567.89 0xDEADBEEF 1e-9 ½ ² ④ Ⅷ ٣ 𝟘𝟙 三 x² 3rd
def f(x):\\n    return x ** 2  # comment\\n\\n\\nclass A:\\n\\tpass\\n
#include <stdio.h>\\n\\nint main(void)\\n{\\n\\tprintf("%d\\\\n", 42);\\n}\\n
SELECT a.*, COUNT(*) FROM t AS a WHERE x >= 10 AND y <> 'it''s' GROUP BY 1;
{"key": [1, 2.5, null, true], "nested": {"a": "b\\\\n"}}\\r\\n
<div class="x">&nbsp;</div><!-- comment --> $$\\\\sum_{i=0}^n i^2$$
https://example.org/path?a=1&b=%20c#frag user@example.org C:\\\\Users\\\\x ~/.bashrc
for (let i=0;i<n;++i){a[i]+=b[i]||0} => x !== y && !z ?? w...
   leading\\n  \\n \\n\\n trailing   \\t \\t
a\\u00a0b\\u2003c\\u3000d\\u180ee\\u0085f\\u2028g\\u200ah\\u1680i\\n\\u3000\\n
\\r\\n\\r\\n\\r \\n\\n \\r x\\r\\n y
________ ======== -------- ........ ,,,,,,,, !!!!!!!! ########
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
hahahahahahahahahahahahahahahahahahahahahahahahahahahahahahahahahahahahahaha
supercalifragilisticexpialidocious Donaudampfschifffahrtsgesellschaftskapitän
\\u0004 \\u0013 \\u0000 \\u007f \\u009f \\U000f0000 \\U0010ffff \\U000e0041 \\uffff
<|im_start|>user\\nHi<|im_end|>\\n<|endoftext|><tool_call>{}</tool_call><|im_end|
"""
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "<|im_", "|>"]
PIECES = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "'s", "'LL", "7", "42", "\u0301", "\u3000", "é", "ß", "中", "!", "...", "_", "😀", "\u200d"]


def texts(rng):
    fixed = [line.encode("raw_unicode_escape").decode("unicode_escape") if "\\" in line else line for line in SENTENCES.splitlines()]
    yield from (t for t in fixed)
    for _ in range(300 - len(fixed)):
        mixed = ""
        while len(mixed) < rng.choice((10, 40, 120)):
            what = rng.random()
            if what < 0.45:
                text = rng.choice(fixed)
                at = rng.randrange(len(text))
                mixed += text[at:at + rng.randint(1, 25)]
            elif what < 0.9:
                mixed += rng.choice(PIECES)
            else:
                mixed += rng.choice(SPECIALS)
        yield mixed


def main():
    models = {"smollm2": Model(sys.argv[1]), "qwen2.5": Model(sys.argv[2])}
    tokenizers = {name: model.tokenizer() for name, model in models.items()}
    rng = random.Random(SEED)

    def ids(name, text, special):
        tokenizers[name].encode_special_tokens = not special
        return tokenizers[name].encode(text, add_special_tokens=False).ids

    all_texts = list(texts(rng))
    with open(os.path.join(HERE, "tokenizer.jsonl"), "w", encoding="ascii") as file:
        for text in all_texts:
            special = rng.random() < 0.3
            line = {"text": text, "special": special, **{name: ids(name, text, special) for name in models}}
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
    contents = [t for t in all_texts if "<|" not in t]
    with open(os.path.join(HERE, "tokenizer_chat.jsonl"), "w", encoding="ascii") as file:
        for _ in range(40):
            talk = [{"role": m["role"], "content": m["content"][:80]} for m in tokenizer_chat.conversation(rng, contents, False)]
            line = {"messages": talk}
            for name, model in models.items():
                prompt = tokenizer_chat.template_of(model).render(messages=talk, add_generation_prompt=True, bos_token=model.bos)
                line[name] = ids(name, prompt, True)
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
