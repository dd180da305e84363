"""Words that may stand beside an accepted answer, and words that turn it into a longer name.

All in lower case, without accents. They are of the languages that small models answer in, most of them English.
"""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """Return the words of a text, as a set."""
    return frozenset(text.split())


#: Forms of "to be" and other words after which a sentence states its answer.
COPULAS = words(
    """
    is was are were be been being am isnt answer answers called named its thats hes shes theyre theres im ist war
    sind waren heisst hiess lautet nennt est etait sont cest sappelle es fue era son eran e foi eram sono erano si
    chiama chiamata ar var heter er het jest byl byla byly to dir olan idi это является был была är были
    называется
    """
)
#: Words of grammar, and verbs, that may stand before an answer.
BEFORE = words(
    """
    in at on by from to for with within into onto as through throughout across that which who whom where when
    because so then thus hence therefore here there and it this these those you we i they he she his her their our
    my your one would should will can could must has have had get gets got make makes made use uses used need
    needs think thinks believe believes guess say choose chooses chose pick select know known means meant see find
    found contain contains contained become becomes became remain remains remained equals stays breathe want wants
    write wrote written visit visited capital answer option correct right also just only still now today usually
    mostly probably namely ie via toward towards der die das den dem des ein eine im am an auf aus bei mit nach
    von zu zum zur vom auch le la les l un une au aux en dans a par pour sur avec du el los las una uno por para
    con al del lo il gli da nel nella dal della o os um uma no na do pelo pela det ett ei et pa de het een op w z
    ze в во на из с со у по город столица городе река
    """
)
#: Kinds and titles, which do not change an answer: "the planet Jupiter", "Sir Isaac Newton".
KINDS = words(
    """
    city town village state country nation province county region district continent island islands river lake sea
    ocean mountain mount mountains desert planet moon star galaxy constellation kingdom republic empire federation
    territory element metal gas liquid mineral compound acid chemical substance material molecule gemstone crystal
    drug vitamin animal mammal bird fish insect reptile plant tree flower fruit vegetable organ bone gland muscle
    cell disease virus colour color shade symbol letter number word term name title phrase language currency unit
    year month day decade century date season holiday author writer novelist poet playwright composer musician
    singer songwriter rapper band group painter artist sculptor architect physicist chemist biologist scientist
    mathematician astronomer inventor engineer philosopher economist psychologist doctor physician nurse explorer
    astronaut cosmonaut actor actress director producer comedian presenter host journalist politician president
    chancellor premier minister senator governor mayor king queen prince princess emperor empress tsar czar sultan
    pharaoh caliph shah pope bishop archbishop cardinal saint gen lt col capt sgt sen rep gov pres hon adm maj
    general admiral captain colonel major commander sergeant sir dame lord lady baron count duke duchess earl
    marquis dr mr mrs ms miss prof professor rev reverend father mother brother sister coach player footballer
    golfer boxer swimmer runner driver cyclist god goddess hero heroine character creature monster book novel play
    poem film movie show series song album opera symphony ballet game sport team club company brand magazine
    newspaper musical war battle treaty act law party religion university college school hospital museum building
    bridge tower street airport station capital municipality borough suburb neighbourhood neighborhood community
    area place location option choice answer solution result response reply antwort reponse respuesta risposta
    resposta antwoord svar ответ odpowiedz creator founder designer developer owner leader winner champion killer
    assassin narrator speaker stadt land fluss ville pays fleuve ciudad pais rio citta paese fiume город страна
    река планета столица hauptstadt capitale huvudstad hoofdstad stolica
    """
)
#: Words before "of" that do not change the answer: "the city of Paris", "made of iron".
MADE_OF = words(
    """
    made composed consists consist consisting comprised built formed kind type sort form species breed instance
    part capital speaking because all most think thinking thought symbol name title abbreviation formula
    city town village state country nation province county region district continent island islands lake kingdom
    republic empire colour color element metal gas planet year month ville ciudad cidade stadt citta pais pays
    """
)
#: Words after which nothing is stated: "Saturn, after Jupiter".
OTHERS = words(
    """
    after before since until till like unlike than behind beyond below above under over around near against
    besides despite between versus plus minus did does do as nach vor seit wie apres avant comme despues antes
    como come dopo prima som efter jak po przed как после до
    """
)
#: Words before "to" that do not change the answer: "it refers to Paris".
TOWARDS = words(
    """
    refers refer belongs belong corresponds amounts changed renamed equal equals equivalent moved moves went goes
    go
    """
)
#: Words ending in "ly" that are not adverbs.
NO_ADVERBS = words(
    """
    holy ugly family italy sicily july jelly belly lily silly curly woolly early lovely supply reply fly
    """
)
#: Particles of names: "Leonardo da Vinci".
PARTICLES = words(
    """
    of da de di van von der del della du des dos das el al la le les bin ibn ten ter af av zu y e in
    """
)
#: Words that turn the answer into another name when they precede it: "New Mexico", "West Virginia".
PREFIXES = words(
    """
    new north south east west northern southern eastern western central upper lower inner outer greater lesser
    little great big old young grand saint st san santa sankt port fort mount cape lake papua equatorial real
    inter fc ac neu nouvelle nueva nova novo nieuw vice deputy ex mini mega super sub anti semi quasi pseudo neo
    proto white black red blue green yellow golden dark light heavy hard soft false fake mock fools
    """
)
#: Words that turn the answer into another name when they follow it: "George Bush Jr.", "Henry V" and "Henry V II".
SUFFIXES = words(
    """
    jr sr junior senior ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi younger elder
    """
)
#: Words of grammar, and units of time, that may follow an answer.
FOLLOWING = words(
    """
    is was are were isnt has had have does did do will would can could should must may might shall who whom whose
    which that where when while because since so as and in at on by from to for with within during into through
    throughout between around about across along behind over under up down out before after until via per also too
    indeed itself himself herself themselves i he she it they we you this these there here then thus again alone
    right correct of course please thanks today now currently officially located situated king queen emperor
    president pope usa als auf aus bei der die das den dem ein im ist mit nach und von war wurde zu liegt genannt
    a au aux avec dans de des du en est et etait le la les pour par qui que sur un une se situe al con cual del
    donde el era es fue las los por su una y e foi na no da che dal di nel si ar och som var pa av er og paa het
    van op jest w z byl это в на и является был была которая который находится
    """
)
#: Verbs that may follow an answer as the subject of its sentence; regular ones are recognised by their ending.
VERBS = words(
    """
    wrote won sang sung became become made built led left began ran came went got gave took saw said did drew
    drove fell fought found flew grew held kept knew lay lost met paid put read rose sold sent set shot sat slept
    spoke spent stood swam taught thought threw understood wore wound bore beat bought brought caught chose
    dug ate froze hid hit hung says told tells died remain rust flow live lie form make give orbit
    """
)
#: Adjectives that do not change a thing: "the human heart", "plain water".
HARMLESS = words(
    """
    human plain pure ordinary common normal simple regular single same very chemical elemental famous legendary
    metallic gaseous native natural primary main largest biggest smallest tallest longest oldest first last
    following only beautiful lovely renowned ancient modern current late early
    """
)
#: Adjectives of praise or fame, and professions, which leave a person or place who or what it is: "the gifted Mozart".
#: Others may name another one ("the fictional Mozart", "the younger Mozart"), so they are not here.
DESCRIPTIONS = words(
    """
    acclaimed admired biblical beloved brave brilliant celebrated charismatic charming cosmopolitan distinguished
    eminent esteemed fabled famed gifted glamorous gorgeous historic iconic illustrious immortal incomparable
    influential infamous inimitable magnificent marvellous marvelous mighty mythical mythological noble notable
    noted notorious picturesque popular powerful prolific respected revered romantic splendid stunning sunny
    talented unforgettable vibrant bustling virtuous visionary wise wonderful young giant starring featuring
    northern southern eastern western tropical elegant dear academic activist adventurer agronomist alchemist
    anarchist animator anthropologist archaeologist astrologer astrophysicist athlete aviator bacteriologist banker
    bandit bassist biochemist botanist broadcaster businessman businesswoman cardiologist cartographer cartoonist
    cellist chef choreographer cleric comic conductor conqueror criminal critic dancer dictator diplomat dramatist
    drummer ecologist embryologist entrepreneur essayist fabulist feminist filmmaker friar gangster genius
    geneticist geographer geologist geometer guitarist historian humanist humorist illustrator immunologist
    industrialist judge lawyer linguist logician lyricist magician merchant microbiologist missionary monarch monk
    naturalist navigator neurologist nun orator organist outlaw paleontologist pathologist philanthropist
    philologist photographer pianist pilot pioneer pirate playwright polymath priest printmaker prodigy programmer
    psychiatrist psychoanalyst publisher reformer revolutionary ruler sailor satirist scholar screenwriter seafarer
    sociologist soldier soprano spy statesman stateswoman statistician suffragette surgeon surveyor tenor theologian
    theorist tycoon violinist virologist virtuoso warlord warrior zoologist compositeur peintre ecrivain poete roi
    reine compositor pintor escritor poeta rey reina compositore pittore scrittore re regina композитор писатель
    поэт художник король
    """
)
#: Two words joined by a hyphen that describe as those do.
COMPOUNDS = frozenset({"well known", "best known", "world famous", "world renowned", "present day", "award winning"})
#: Words before a kind that make another one of it: "the other composer Mozart".
OTHER_ONES = words("other another different wrong unrelated rival similar fake false alternate imaginary impostor")
#: Words that open an answer and name nothing.
REPLIES = words(
    """
    yes yeah yep sure certainly well okay ok absolutely right correct indeed so ah oh hello hi hey thanks great
    good answer solution result easy simple hmm perfect alright finally overall summary conclusion note fact true
    exactly i is ja oui si sim tak да voila bien claro
    """
)
#: Countries, as "Paris, France" or "Henry V of England" names them.
#: Not Georgia, which is also a state with many towns of such names.
COUNTRIES = words(
    """
    afghanistan albania algeria andorra angola argentina armenia austria azerbaijan bahamas bahrain bangladesh
    barbados belarus belgium belize benin bhutan bolivia botswana brazil brunei bulgaria burundi cambodia cameroon
    chad chile china colombia comoros congo croatia cuba cyprus czechia denmark djibouti dominica ecuador egypt
    england eritrea estonia eswatini ethiopia fiji finland france gabon gambia germany ghana greece grenada
    guatemala guinea guyana haiti honduras hungary iceland india indonesia iran iraq ireland israel italy jamaica
    japan jordan kazakhstan kenya kiribati korea kosovo kuwait kyrgyzstan laos latvia lebanon lesotho liberia
    libya liechtenstein lithuania luxembourg macedonia madagascar malawi malaysia maldives mali malta mauritania
    mauritius mexico moldova monaco mongolia montenegro morocco mozambique myanmar namibia nauru nepal netherlands
    nicaragua niger nigeria norway oman pakistan palau panama paraguay peru philippines poland portugal qatar
    romania russia rwanda samoa scotland senegal serbia seychelles singapore slovakia slovenia somalia spain sudan
    suriname sweden switzerland syria taiwan tajikistan tanzania thailand togo tonga tunisia turkey turkmenistan
    tuvalu uganda ukraine uruguay uzbekistan vanuatu vatican venezuela vietnam wales yemen zambia zimbabwe
    """
)
CONTINENTS = words("america europe asia africa")
#: Countries whose names are of several words, or shared with other places.
OTHER_COUNTRIES = frozenset(
    {"georgia", "usa", "us", "uk", "united states", "united kingdom", "great britain", "britain", "new zealand"}
    | {"south africa", "saudi arabia", "czech republic", "costa rica", "el salvador", "sri lanka", "south korea"}
    | {"north korea", "ivory coast", "dominican republic", "papua new guinea", "sierra leone", "burkina faso"}
    | {"bosnia and herzegovina", "trinidad and tobago", "united arab emirates", "east timor", "cape verde"}
)
