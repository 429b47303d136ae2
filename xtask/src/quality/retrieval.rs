//! Texts with questions: numbers defined in unseen code and asked for later.
//!
//! A definition is a line `const MAX_ABCDE: u64 = 123456;`, five letters and six digits, anywhere in the text; a question is
//! `    assert_eq!(MAX_ABCDE, 123456);`. At the end, twelve questions in a test function close the text; in the middle, each stands on
//! a line of its own in the second half, its definition in the first. An answer is right where every digit is the most likely byte,
//! given the bytes before it.

use super::weights::VOCABULARY;

/// Questions of a text.
pub const QUESTIONS: usize = 12;

/// Where the questions stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    End,
    Middle,
}

impl Place {
    pub const ALL: [Place; 2] = [Place::End, Place::Middle];

    pub fn name(self) -> &'static str {
        match self {
            Place::End => "end",
            Place::Middle => "middle",
        }
    }
}

/// A text with questions.
pub struct Case {
    pub place: Place,
    pub seed: u64,
    pub bytes: Vec<u8>,
    /// Where the first digit of each answer stands, and the digits.
    answers: Vec<(usize, String)>,
}

/// How many questions were answered right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    pub place: Place,
    pub right: usize,
    pub asked: usize,
}

/// Share of the questions at a place that were answered right; `None` where there were none.
pub fn share_right(answered: &[Answered], place: Place) -> Option<f64> {
    let here = answered.iter().filter(|text| text.place == place);
    let (right, asked) = here.fold((0, 0), |(right, asked), text| {
        (right + text.right, asked + text.asked)
    });
    (asked > 0).then(|| right as f64 / asked as f64)
}

impl Case {
    /// A text of `len` bytes made of `text`, by a seed.
    pub fn new(text: &[u8], len: usize, seed: u64, place: Place) -> Result<Self, String> {
        let room = len.checked_sub(QUESTIONS * 75 + 60);
        let (Some(room), Some(spare)) = (room, text.len().checked_sub(len + 1)) else {
            return Err(format!(
                "a text of {len} bytes with questions needs more than {} bytes of text and itself to be longer",
                len + 1
            ));
        };
        let mut random = Random::new(seed, len as u64, place);
        let at = random.below(spare.max(1));
        let mut size = 0;
        let mut lines: Vec<Vec<u8>> = text[at..at + len]
            .split(|&byte| byte == b'\n')
            .take_while(|line| {
                size += line.len() + 1;
                size <= room
            })
            .map(<[u8]>::to_vec)
            .collect();
        if lines.len() < 100 {
            return Err(format!(
                "{} lines are too few to ask questions in",
                lines.len()
            ));
        }
        let constants: Vec<Constant> = (0..QUESTIONS).map(|_| Constant::new(&mut random)).collect();
        let bytes = match place {
            Place::End => ask_at_the_end(lines, &constants, len, &mut random),
            Place::Middle => {
                ask_in_the_middle(&mut lines, &constants, &mut random);
                let mut bytes = lines.join(&b'\n');
                bytes.resize(len, b'\n');
                bytes
            }
        };
        let answers = constants
            .into_iter()
            .map(|constant| {
                let question = constant.question();
                let found = bytes.windows(question.len()).position(|at| at == question);
                let start = found.ok_or("a question was lost")?;
                // The digits stand before `);`.
                let first_digit = start + question.len() - 2 - constant.digits.len();
                Ok((first_digit, constant.digits))
            })
            .collect::<Result<_, String>>()?;
        Ok(Case {
            place,
            seed,
            bytes,
            answers,
        })
    }

    /// Judges the predictions [position, 256] of the byte after each of the text's bytes.
    pub fn judge(&self, logits: &[f32]) -> Answered {
        let most_likely = |position: usize| {
            let row = &logits[position * VOCABULARY..(position + 1) * VOCABULARY];
            (0..VOCABULARY).max_by(|&a, &b| row[a].total_cmp(&row[b]))
        };
        let right = self.answers.iter().filter(|(first, digits)| {
            let mut digits = digits.bytes().enumerate();
            digits.all(|(index, digit)| most_likely(first + index - 1) == Some(digit.into()))
        });
        Answered {
            place: self.place,
            right: right.count(),
            asked: self.answers.len(),
        }
    }
}

struct Constant {
    letters: String,
    digits: String,
}

impl Constant {
    fn new(random: &mut Random) -> Self {
        let mut draw = |from: &[u8], count| -> String {
            (0..count)
                .map(|_| char::from(from[random.below(from.len())]))
                .collect()
        };
        Constant {
            letters: draw(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", 5),
            digits: draw(b"0123456789", 6),
        }
    }

    fn definition(&self) -> Vec<u8> {
        format!("const MAX_{}: u64 = {};", self.letters, self.digits).into_bytes()
    }

    fn question(&self) -> Vec<u8> {
        format!("    assert_eq!(MAX_{}, {});", self.letters, self.digits).into_bytes()
    }
}

fn ask_in_the_middle(lines: &mut Vec<Vec<u8>>, constants: &[Constant], random: &mut Random) {
    for constant in constants {
        let half = lines.len() / 2;
        lines.insert(random.between(half + 20, lines.len()), constant.question());
        lines.insert(random.below(half), constant.definition());
    }
}

fn ask_at_the_end(
    mut lines: Vec<Vec<u8>>,
    constants: &[Constant],
    len: usize,
    random: &mut Random,
) -> Vec<u8> {
    for constant in constants {
        lines.insert(random.below(lines.len() - 40), constant.definition());
    }
    let mut questions: Vec<Vec<u8>> = constants.iter().map(Constant::question).collect();
    for index in (1..questions.len()).rev() {
        questions.swap(index, random.below(index + 1));
    }
    let mut end = b"\n#[test]\nfn constants_are_right() {\n".to_vec();
    for question in questions {
        end.extend(question);
        end.push(b'\n');
    }
    let body = lines.join(&b'\n');
    let mut bytes = vec![b'\n'; len - body.len() - end.len()];
    bytes.extend(body);
    bytes.extend(end);
    bytes
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn new(seed: u64, len: u64, place: Place) -> Self {
        Random(seed << 32 ^ len << 1 ^ place as u64)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `end`, which is small beside 2⁶⁴.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn between(&mut self, start: usize, end: usize) -> usize {
        start + self.below(end - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> Vec<u8> {
        let line = |index: usize| format!("let x{index} = {};\n", index * 7);
        (0..3000)
            .flat_map(|index| line(index).into_bytes())
            .collect()
    }

    fn position(bytes: &[u8], part: &str) -> usize {
        let mut windows = bytes.windows(part.len());
        windows.position(|at| at == part.as_bytes()).unwrap()
    }

    #[test]
    fn every_answer_is_defined_before_it_is_asked_for() {
        for place in Place::ALL {
            for seed in 0..5 {
                let case = Case::new(&text(), 8192, seed, place).unwrap();
                assert_eq!((case.bytes.len(), case.answers.len()), (8192, QUESTIONS));
                for (first, digits) in &case.answers {
                    assert_eq!(&case.bytes[*first..first + 6], digits.as_bytes());
                    let defined = position(&case.bytes, &format!(": u64 = {digits};"));
                    match place {
                        Place::End => assert!(defined < *first && *first > 7500),
                        // Lines are as long as each other, so half of them are half of the text.
                        Place::Middle => assert!(defined < 4300 && *first > 3900),
                    }
                }
            }
        }
    }

    #[test]
    fn a_seed_gives_a_text_and_another_one_another() {
        let of = |seed| Case::new(&text(), 8192, seed, Place::End).unwrap().bytes;
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
    }

    #[test]
    fn an_answer_counts_where_every_digit_is_most_likely() {
        let case = Case::new(&text(), 8192, 1, Place::Middle).unwrap();
        let mut logits = vec![0.0; 8192 * VOCABULARY];
        for (position, &next) in case.bytes[1..].iter().enumerate() {
            logits[position * VOCABULARY + usize::from(next)] = 1.0;
        }
        assert_eq!(case.judge(&logits).right, QUESTIONS);
        // The last digit of one answer.
        let (first, _) = case.answers[4];
        logits[(first + 4) * VOCABULARY + usize::from(b'x')] = 2.0;
        let answered = case.judge(&logits);
        assert_eq!((answered.right, answered.asked), (QUESTIONS - 1, QUESTIONS));
        let share = share_right(&[answered], Place::Middle).unwrap();
        assert!((share - 11.0 / 12.0).abs() < 1e-12);
        assert_eq!(share_right(&[answered], Place::End), None);
    }

    #[test]
    fn texts_too_short_for_questions_are_refused() {
        assert!(Case::new(&text(), 900, 0, Place::End).is_err());
        assert!(Case::new(&text()[..8000], 8192, 0, Place::End).is_err());
    }
}
