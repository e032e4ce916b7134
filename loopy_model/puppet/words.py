"""Plain English words for the puppet's speech; the second list is for tests only."""

_SHARED = """
the and a to of in is it you we he she they my your our one two three some all any
good new big old small very so not can will may do go see say make take come give
""".split()

_TRAINING = """
apple arm autumn baby bake ball banana basket beach bean bear bee bell bench bird boat book
boot bottle bowl box boy bread breeze bridge broom brother brush bubble bush butter button
cake calm camp candle car carpet castle cat chair chalk cheese cherry chew chin choose church
clock cloud coat coffee cold cook corn cow cream cup dance dark day deep deer desk dinner dish
dog door dream drum duck dust ear earth east egg evening eye face family farm father feather
feel fern field fire fish five flag floor flower fly food fool foot forest fork fox free friend
frog fruit garden gate ghost giant girl glass glove gold goose grape grass green guitar hair
half hammer hand happy harbour hat hear heart hill home honey horse house ice inn island jam
jar jewel job joke juice jump keep key king kitchen kite lamb lamp leaf learn lemon letter
light lion lip map market meadow meat melon milk mirror moon morning mother mountain mouse
mouth music nail near needle nest noise north nose nurse oak oar ocean onion open orange oven
owl page paint palm paper park path peach pear pencil people piano pillow pink plum pond pool
poor popcorn purple queen quick rain read ribbon river road rock roof room rope rose round
sail salt school sea seed seven sheep shell shoe shop silver sing sister sleep smile smooth
snow soap song soup south spoon spring square star stone storm story street sugar summer sun
table tea teach teeth thunder tool tower toy train tree truth turn umbrella under uncle valley
village violin voice walk wall warm wash water wave west whale wheel white wide wind window
winter wolf wood wool word work yard year yellow young zebra zoo
""".split()

_HELD_OUT = """
airport answer aunt balloon barn beaver blossom bowling bookcase bucket camera canoe cartoon
cello chapel cinema coconut compass cookie cottage cousin crown curtain daisy dolphin donkey
eagle engine feast finger foam fountain fuse gallery globe goat harvest helmet hobby hoop igloo
jacket jelly jungle kettle ladder lagoon lantern leopard magic maple marble meeting monkey
moose mushroom necklace noodle nutmeg olive opera orchard oyster parade parrot peanut picture
pigeon pirate planet potato puppet puzzle rabbit raccoon rainbow rocket saddle sandal scarf
season shampoo shower spider statue studio sunset teapot temple theatre tomato tooth trumpet
tulip turtle vase velvet volcano waffle walnut wardrobe weather willow wizard woman yogurt
""".split()

TRAINING_WORDS = tuple(_SHARED + _TRAINING)
HELD_OUT_WORDS = tuple(_SHARED + _HELD_OUT)
