"""Captions of usual lengths in nine languages, for benchmarks: from two words to three sentences."""

from __future__ import annotations

import random

CAPTIONS = {
    "en": [
        "a cat",
        "two dogs running on the beach at sunset",
        "A woman in a red coat waits for the bus while it is raining.",
        "The old lighthouse on the northern cliff, photographed early in the morning. Fog still covers the bay, and"
        " only the tip of the tower and two fishing boats can be seen above it.",
    ],
    "zh": [
        "一只猫",
        "两只狗在日落时的海滩上奔跑",
        "一位穿红色大衣的女士在雨中等公共汽车。",
        "清晨拍摄的北方悬崖上的老灯塔。海湾仍被雾笼罩,只能看见塔尖和两条渔船。",
    ],
    "es": [
        "un gato",
        "dos perros corriendo por la playa al atardecer",
        "Una mujer con un abrigo rojo espera el autobús bajo la lluvia.",
        "El viejo faro del acantilado del norte, fotografiado a primera hora de la mañana. La niebla cubre todavía la"
        " bahía y solo se ven la punta de la torre y dos barcas de pesca.",
    ],
    "fr": [
        "un chat",
        "deux chiens courant sur la plage au coucher du soleil",
        "Une femme en manteau rouge attend le bus sous la pluie.",
        "Le vieux phare de la falaise du nord, photographié tôt le matin. Le brouillard couvre encore la baie et l'on"
        " ne voit que la pointe de la tour et deux bateaux de pêche.",
    ],
    "ru": [
        "кот",
        "две собаки бегут по пляжу на закате",
        "Женщина в красном пальто ждёт автобус под дождём.",
        "Старый маяк на северном утёсе, снятый ранним утром. Туман ещё закрывает бухту, и видны только верхушка башни и"
        " две рыбацкие лодки.",
    ],
    "ar": [
        "قطة",
        "كلبان يركضان على الشاطئ عند الغروب",
        "امرأة بمعطف أحمر تنتظر الحافلة تحت المطر.",
        "المنارة القديمة على الجرف الشمالي كما صُوّرت في الصباح الباكر. لا يزال الضباب يغطي الخليج ولا يُرى سوى قمة البرج"
        " وقاربي صيد.",
    ],
    "ja": [
        "猫",
        "夕暮れの浜辺を走る二匹の犬",
        "赤いコートの女性が雨の中でバスを待っている。",
        "早朝に撮影された北の崖の古い灯台。湾はまだ霧に覆われ、塔の先と二艘の漁船だけが見える。",
    ],
    "ko": [
        "고양이",
        "해 질 녘 해변을 달리는 개 두 마리",
        "빨간 코트를 입은 여자가 빗속에서 버스를 기다린다.",
        "이른 아침에 찍은 북쪽 절벽의 오래된 등대. 만은 아직 안개에 덮여 있고 탑 끝과 고깃배 두 척만 보인다.",
    ],
    "it": [
        "un gatto",
        "due cani che corrono sulla spiaggia al tramonto",
        "Una donna con un cappotto rosso aspetta l'autobus sotto la pioggia.",
        "Il vecchio faro sulla scogliera settentrionale, fotografato di primo mattino. La nebbia copre ancora la baia"
        " e si vedono soltanto la punta della torre e due barche da pesca.",
    ],
}
SHARES = (1, 4, 4, 1)  # of the four lengths: most captions are one sentence


def captions(count: int, seed: int = 0) -> list[str]:
    """Return captions in random order, of all languages and lengths."""
    generator = random.Random(seed)
    languages = sorted(CAPTIONS)
    return [generator.choices(CAPTIONS[generator.choice(languages)], SHARES)[0] for _ in range(count)]
