"""Names under which noto-v1, emojione and fxemoji know concepts that CLDR 48 calls otherwise.

Each line was checked by looking at the picture beside that of today's Noto.
"""

# CLDR 48 name -> the slugs that noto-v1 or emojione, which have names of about 2017, may have for it
RENAMED = {
    "UP! button": ("up-exclamation-button", "up-text-button"),
    "A button (blood type)": ("a-button",),
    "AB button (blood type)": ("ab-button",),
    "B button (blood type)": ("b-button",),
    "O button (blood type)": ("o-button",),
    "bullseye": ("direct-hit",),
    "chequered flag": ("flag-for-chequered-flag",),
    "black flag": ("flag-for-black-flag",),
    "crossed flags": ("flag-for-crossed-flags",),
    "rainbow flag": ("flag-for-rainbow-flag",),
    "triangular flag": ("flag-for-triangular-flag",),
    "white flag": ("flag-for-white-flag",),
    "crying cat": ("crying-cat-face",),
    "enraged face": ("pouting-face",),
    "face with crossed-out eyes": ("dizzy-face",),
    "cat with tears of joy": ("cat-face-with-tears-of-joy",),
    "cat with wry smile": ("cat-face-with-wry-smile",),
    "grinning cat": ("grinning-cat-face",),
    "grinning cat with smiling eyes": ("grinning-cat-face-with-smiling-eyes",),
    "kissing cat": ("kissing-cat-face",),
    "pouting cat": ("pouting-cat-face",),
    "smiling cat with heart-eyes": ("smiling-cat-face-with-heart-eyes",),
    "weary cat": ("weary-cat-face",),
    "heart exclamation": ("heavy-heart-exclamation",),
    "keycap: #": ("keycap-pound",),
    "keycap: *": ("keycap-asterisk",),
    "men holding hands": ("two-men-holding-hands",),
    "women holding hands": ("two-women-holding-hands",),
    "woman and man holding hands": ("man-and-woman-holding-hands",),
    "person in suit levitating": ("man-in-suit-levitating",),
    "person with skullcap": ("man-with-chinese-cap",),
    "person with veil": ("bride-with-veil",),
    "person: blond hair": ("blond-haired-person",),
    "red exclamation mark": ("exclamation-mark",),
    "red question mark": ("question-mark",),
    "robot": ("robot-face",),
    "smiling face with open hands": ("hugging-face",),
}
# a place as CLDR 48 calls it -> as emojione does
FLAGS = {
    "cocos-keeling-islands": ("cocos-islands",),
    "eswatini": ("swaziland",),
    "macao-sar-china": ("macau-sar-china",),
    "myanmar-burma": ("myanmar",),
    "north-macedonia": ("macedonia",),
    "turkiye": ("turkey",),
    "u-s-outlying-islands": ("us-outlying-islands",),
    "u-s-virgin-islands": ("us-virgin-islands",),
}
# concepts whose names fit another picture of fxemoji, a damaged one, or one that shows something else (a revolver)
UNFIT_FXEMOJI = {
    "blue heart",
    "face with thermometer",
    "light rail",
    "station",
    "tram car",
    "umbrella",
    "water pistol",
    "window",
}
# CLDR 48 name = slug of fxemoji, where its Unicode name does not lead there
_FXEMOJI = """
grinning face = grin | beaming face with smiling eyes = grineyes | face with tears of joy = grintears
grinning face with big eyes = grinwide | grinning face with smiling eyes = grinwideeyes
grinning face with sweat = grinsweat | grinning squinting face = grinsquint | smiling face with halo = halo
smiling face with horns = devilhorns | smiling face with smiling eyes = smileeyes | face savoring food = smiletongue
smiling face with heart-eyes = hearteyes | smiling face with sunglasses = sunglasses | sunglasses = darksunglasses
smirking face = smirk | kissing face = kiss | face blowing a kiss = kissing
kissing face with smiling eyes = kisseyes | kissing face with closed eyes = kissclosedeyes | kiss = couplekiss
couple with heart = couple | face with steam from nose = triumph | face without mouth = nomouth
face with tongue = tongueout | winking face with tongue = tongueoutwink | squinting face with tongue = tongueoutwink2
persevering face = perservere | sad but relieved face = dissapointedrelief
frowning face with open mouth = frownmouth | anguished face = anguish | face screaming in fear = screamfear
slightly frowning face = smallfrown | slightly smiling face = smallsmile | sleeping face = sleeping | ZZZ = zzz
pile of poo = poo | see-no-evil monkey = monkeysee | hear-no-evil monkey = monkeyhear
speak-no-evil monkey = monkeyspeak | goblin = japaneseangrymask | two hearts = 2hearts | beating heart = beating-heart
green heart = heartgreen | yellow heart = heartyellow | purple heart = heartpurple | sweat droplets = sweatsplash
speech balloon = speechbubble | thought balloon = thoughtbaloon | speaking head = speakingheadinsilhouette
flexed biceps = flexbicep | waving hand = waving | water wave = wave | clapping hands = clap | raising hands = high5
open hands = hands | folded hands = pray | OK hand = aok | hand with fingers splayed = raisedhandsfingerssplayed
vulcan salute = raisedhandpartfingers | middle finger = reversehandmiddlefinger | raised hand = hand
backhand index pointing up = up | backhand index pointing down = down | backhand index pointing left = left
backhand index pointing right = right | index pointing up = index | writing hand = leftwritinghand | old man = gpa
old woman = gma | person: blond hair = blonde | person with veil = bride | person with skullcap = guapimao
person wearing turban = turban | police officer = cop | construction worker = construct
person tipping hand = waitress | person getting massage = headmassage | person gesturing NO = nogesture
person raising hand = handup | person bowing = bowing | person frowning = frown | person pouting = pout
detective = sleuthspy | person walking = walking | person running = running | person lifting weights = weightlifter
person golfing = golfer | person swimming = swimming | person in suit levitating = maninbusinesssuitlevitating
bust in silhouette = contact | busts in silhouette = contact2 | woman and man holding hands = girlguy
women holding hands = girlgirl | men holding hands = guyguy | people with bunny ears = bunny-ears | dog = dogside
dog face = dog | cat = catside | cat face = cat | mouse = mouseside | mouse face = mouse | tiger = tigerside
tiger face = tiger | pig = pigside | pig face = pig | pig nose = pigsnout | leopard = leopardside | rabbit = bunnyside
rabbit face = bunny | dragon = dragonside | dragon face = dragonhead | hamster = hampster
spouting whale = spurtingwhale | front-facing baby chick = frontfacingchick | dove = doveofpeace | necktie = tie
t-shirt = mansshirt | woman’s clothes = womansshirt | purse = pinkwallet | clutch bag = makeupbag
man’s shoe = mensshoe | running shoe = mensrunner | high-heeled shoe = heels | woman’s sandal = sandals
woman’s boot = boot | gem stone = gem | closed umbrella = umbrella | ribbon = bow | wrapped gift = present
reminder ribbon = reminder | confetti ball = confetti | studio microphone = studiomic | control knobs = controlknob
tennis = tennisball | racing car = racecar | snow-capped mountain = snowmountains | houses = housebuildings
building construction = construction | Tokyo tower = toykotower | map of Japan = silhouetteohjapan
hot pepper = chilipepper | evergreen tree = evergreen | fallen leaf = fallingleaf
leaf fluttering in wind = leaffluttering | fish cake with swirl = fishcakeswirl
fork and knife with plate = forkknife | globe showing Europe-Africa = europeafricaglobe
globe showing Americas = americasglobe | globe showing Asia-Australia = asiaaustraliaglobe
globe with meridians = meridianglobe | first quarter moon = firstquartermoon
first quarter moon face = firstquartermoonface | last quarter moon = lastquartermoon
last quarter moon face = lastquartermoonface | waning gibbous moon = waningbibbousmoon | glowing star = star
sun = sunrays | sun behind large cloud = whitesunbehindcloud | sun behind small cloud = whitesunsmallcloud
sun behind rain cloud = sunraincloud | cloud with rain = raincloud | cloud with snow = snowcloud
cloud with lightning = stormcloud | high voltage = bolt | outbox tray = outbox
envelope with arrow = envelopedownarrowabove | closed mailbox with lowered flag = closedmailboxlowered
closed mailbox with raised flag = closedmailboxraised | open mailbox with lowered flag = openmailboxlowered
open mailbox with raised flag = openmailboxraised | mobile phone = cellphone
mobile phone with arrow = phonerightarrowleft | video camera = handheldvideocamera | videocassette = videocasette
telephone receiver = telephonereceiver2 | laptop = oldpersonalcomputer | keyboard = wiredkeyboard
computer mouse = threebuttonmouse | floppy disk = floppydisk2 | bookmark tabs = bookmarktab
magnifying glass tilted left = leftmagnifyingglass | magnifying glass tilted right = rightmagnifyingglass
locked with key = lockandkey | bell with slash = bellcancellation | muted speaker = speakercancellation
speaker high volume = speaker3soundwaves | framed picture = framewithpicture | spiral calendar = spiralcalendarpad
clamp = compression | dagger = daggerknife | mahjong red dragon = mahjong | fountain pen = lowerleftfountainpen
paintbrush = lowerleftpaintbrush | crayon = lowerleftcrayon | pen = lowerleftpen
mantelpiece clock = manltepiececlock | one o’clock = clock1oclock | two o’clock = clock2oclock
three o’clock = clock3oclock | four o’clock = clock4oclock | six o’clock = clock6oclock | seven o’clock = clock7oclock
twelve o’clock = clock12oclock | one-thirty = clock1thirty | two-thirty = clock2thirty | three-thirty = clock3thirty
four-thirty = clock4thirty | five-thirty = clock5thirty | six-thirty = clock6thirty | twelve-thirty = clock12thirty
BACK arrow = backwithleftwardsarrow | END arrow = endwithleftwardsarrow | ON! arrow = onarrowleftright
SOON arrow = soonwithrightarrow | TOP arrow = topwithupwardsarrow
repeat button = clockwiserightwardsleftwardscirclearrows
repeat single button = clockwiserightwardsleftwardscirclearrowsone
clockwise vertical arrows = clockwisedownupcircledarrows
counterclockwise arrows button = anticlockwiseupwardsanddownwardsarrows | upwards button = uppointingsmallredtrisngle
downwards button = downpointingsmallredtrisngle | fast-forward button = blackrightpointingdoublearrow
fast reverse button = blackleftpointingdoublearrow | fast up button = blackuppointingdoublearrow
fast down button = blackdownpointingdoublearrow | play button = blackrightpointingarrow
reverse button = blackleftpointingarrow | right arrow curving up = arrowrightwardsupwards
right arrow curving down = arrowrightwardsdownwards | Sagittarius = saggitarius
dotted six-pointed star = sixpointedstarwithdot | om = omsymbol | no one under eighteen = nooneunder18symbol
potable water = potablewatersystem | skull and crossbones = blackskullcrossbones
double exclamation mark = doubleexclaimationmark | exclamation question mark = exclaimationquestionmark
white exclamation mark = whiteexclaimationmark | multiply = heavymultiplicationsymbol
eight-spoked asterisk = eightspokedasterix | diamond with a dot = diamondshapewithdotinside | keycap: 10 = ten
UP! button = squaredup | A button (blood type) = negativesquaredlatincaptiala
B button (blood type) = negativesquaredlatincaptialb | O button (blood type) = negativesquaredlatincaptialo
Japanese “reserved” button = cjkunifiedideograph-a | Japanese “open for business” button = cjkunifiedideograph-b
Japanese “prohibited” button = cjkunifiedideograph-c | Japanese “vacancy” button = cjkunifiedideograph-d
Japanese “passing grade” button = cjkunifiedideograph-e | Japanese “no vacancy” button = cjkunifiedideograph-f
Japanese “not free of charge” button = cjkunifiedideograph-g
Japanese “monthly amount” button = cjkunifiedideograph-h | Japanese “free of charge” button = cjkunifiedideograph-i
Japanese “application” button = cjkunifiedideograph-j | Japanese “discount” button = cjkunifiedideograph-k
flag: China = chineseflag | flag: Italy = italianflag | flag: Russia = russianflag | flag: South Korea = koreaflag
flag: Spain = spanishflag | flag: United Kingdom = greatbritainflag
"""
FXEMOJI = dict(entry.strip().split(" = ") for line in _FXEMOJI.split("\n") for entry in line.split(" | ") if entry)
