//! Synthetic attention inputs: made up from a seed, not captured from a model.
//!
//! Real long-context attention shows a few structures, and this generator adds them up with known strengths: *sinks* (the
//! first tokens, which most queries fall back to), *stripes* (single keys that all later queries look at), a *local decay*
//! (recent keys), *slashes* (diagonals: keys at one fixed distance), *topics* (passages that look at earlier passages of
//! the same topic) and *noise*. Rotary position embedding in the half-split form, base 500,000, is applied as in a real
//! model, and it is what makes local decay and slashes. What is not real: there is no language behind it, heads differ
//! only by jitter, strengths do not drift with depth or content, and values carry topics and noise alone. Timings on it
//! say what a density costs; it says nothing about the quality of a model's output.
//!
//! The same seed gives the same bits on every platform: randomness is counted, not shared, and sines come from `libm`.

use std::collections::BTreeMap;

use sample_attention::Problem;

use crate::capture::{Capture, CaptureError, Tensor};

/// Strengths of the structures, in nats of softmax logit over a key that has none of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Structure {
    /// The first token; the next three have less.
    pub sink: f32,
    /// The query's own token; it decays with distance as rotary embedding makes it.
    pub local: f32,
    /// A key at a slash's distance.
    pub slash: f32,
    /// Slashes of each query head.
    pub slashes: usize,
    /// The strongest stripes; the others have down to half.
    pub stripe: f32,
    /// Stripes among a thousand keys.
    pub stripes_per_1000: f32,
    /// A key of the query's topic.
    pub topic: f32,
    /// Topics of a sequence. The fewer, the more of the past each passage looks at.
    pub topics: usize,
    /// Standard deviation that noise on queries and keys gives their logit; noise against structure comes on top.
    pub noise: f32,
}

impl Structure {
    /// Easily sparse, as most heads of real models are.
    pub const EASY: Structure = Structure {
        sink: 11.0,
        local: 8.0,
        slash: 9.0,
        slashes: 2,
        stripe: 10.0,
        stripes_per_1000: 0.5,
        topic: 5.0,
        topics: 24,
        noise: 0.4,
    };

    /// Hard to make sparse: weak sinks and stripes over mass that is spread thin.
    pub const HARD: Structure = Structure {
        sink: 5.0,
        local: 6.0,
        slash: 4.0,
        slashes: 2,
        stripe: 5.0,
        stripes_per_1000: 4.0,
        topic: 3.0,
        topics: 6,
        noise: 1.2,
    };

    /// Independent normal queries and keys: every key matters about as much, and nothing can be left out.
    pub const UNIFORM: Structure = Structure {
        sink: 0.0,
        local: 0.0,
        slash: 0.0,
        slashes: 0,
        stripe: 0.0,
        stripes_per_1000: 0.0,
        topic: 0.0,
        topics: 1,
        noise: 1.0,
    };
}

impl Structure {
    /// Nats of the key that every query sees most.
    fn strongest_salience(&self) -> f32 {
        self.sink.max(self.stripe).max(f32::MIN_POSITIVE)
    }
}

/// A recipe for inputs.
///
/// ```
/// use sample_attention::{Dtype, Problem};
/// use sample_attention_inputs::synthetic::{Structure, Synthetic};
/// let recipe = Synthetic {
///     problem: Problem::causal(2048, 64, Dtype::Bf16).with_heads(4, 2),
///     structure: Structure::EASY,
///     seed: 1,
/// };
/// assert_eq!(recipe.generate().unwrap(), recipe.generate().unwrap());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Synthetic {
    /// Shapes, element type and scale. Queries are the last `q_len` positions of the sequence.
    pub problem: Problem,
    /// What the attention looks like.
    pub structure: Structure,
    /// Where all randomness comes from.
    pub seed: u64,
}

impl Synthetic {
    /// The inputs.
    ///
    /// # Errors
    /// An invalid problem, and too little memory.
    pub fn generate(&self) -> Result<Capture, CaptureError> {
        let problem = self.problem;
        problem.validate()?;
        let mut q = Tensor::empty(problem.dtype);
        let mut k = Tensor::empty(problem.dtype);
        let mut v = Tensor::empty(problem.dtype);
        q.reserve("q", problem.q_shape().iter().product())?;
        k.reserve("k", problem.kv_shape().iter().product())?;
        v.reserve("v", problem.kv_shape().iter().product())?;
        let layout = Layout::new(&problem);
        let mut row = vec![0.0; problem.head_dim];
        for batch in 0..problem.batch {
            let sequence = Random::new(self.seed, &[Stream::Sequence as u64, batch as u64]);
            let topics = Topics::new(sequence, self.structure.topics, layout);
            for kv_head in 0..problem.kv_heads {
                let keys = Keys::new(self, layout, batch, kv_head, &topics);
                for position in 0..problem.k_len {
                    keys.key(position, &mut row);
                    k.extend(&row);
                    keys.value(position, &mut row);
                    v.extend(&row);
                }
            }
            for q_head in 0..problem.q_heads {
                let queries = Queries::new(self, layout, batch, q_head, &topics);
                for query in 0..problem.q_len {
                    let position = (query + problem.k_len) as i64 - problem.q_len as i64;
                    queries.query(position, &mut row);
                    q.extend(&row);
                }
            }
        }
        let metadata = [
            ("source".to_owned(), "synthetic".to_owned()),
            ("seed".to_owned(), self.seed.to_string()),
        ];
        Ok(Capture {
            problem,
            q,
            k,
            v,
            metadata: BTreeMap::from(metadata),
        })
    }
}

const ROPE_BASE: f64 = 500_000.0;

/// Tokens of a passage, which has one topic.
const PASSAGE_TOKENS: usize = 192;

/// Tokens that act as sinks, and their share of the first one's logit.
const SINKS: [f32; 4] = [1.0, 0.7, 0.6, 0.5];

/// Which rotary pairs carry what: fast ones positions, slow ones topics, the slowest what is to be seen from everywhere.
#[derive(Clone, Copy)]
struct Layout {
    pairs: usize,
    /// Pairs below this carry positions.
    topics: usize,
    /// Amplitude of a query times that of a key for one nat.
    per_nat: f32,
}

impl Layout {
    fn new(problem: &Problem) -> Self {
        let pairs = problem.head_dim / 2;
        let scale = problem.softmax_scale.abs();
        let usable = scale.is_normal();
        Layout {
            pairs,
            topics: pairs / 2,
            per_nat: if usable {
                1.0 / scale
            } else {
                (problem.head_dim as f32).sqrt()
            },
        }
    }

    /// Pair of sinks and stripes: the slowest.
    fn everywhere(self) -> usize {
        self.pairs - 1
    }

    /// Amplitude of either side of a product of `nats`.
    fn amplitude(self, nats: f32) -> f32 {
        (nats.max(0.0) * self.per_nat).sqrt()
    }

    /// Amplitude of a key in each position pair: its half of the strongest of local decay and slashes. A query has what
    /// that lacks, so that noise meets neither side magnified.
    fn position_amplitude(self, structure: &Structure) -> f32 {
        self.amplitude(structure.local.max(structure.slash) / self.topics as f32)
    }

    /// Amplitude of either side of noise whose logit has this standard deviation.
    fn noise(self, deviation: f32) -> f32 {
        (deviation.max(0.0) * self.per_nat / ((2 * self.pairs) as f32).sqrt()).sqrt()
    }

    /// Radians a token that pair `pair` turns.
    fn frequency(self, pair: usize) -> f64 {
        libm::pow(ROPE_BASE, -(pair as f64) / self.pairs as f64)
    }

    /// Turns every pair of `row` to `position`: element `i` and element `i + head_dim/2` are a pair.
    fn rotate(self, row: &mut [f32], frequencies: &[f64], position: i64) {
        let (first, second) = row.split_at_mut(self.pairs);
        for ((a, b), frequency) in first.iter_mut().zip(second).zip(frequencies) {
            let (sin, cos) = libm::sincos(frequency * position as f64);
            let (x, y) = (f64::from(*a), f64::from(*b));
            *a = (x * cos - y * sin) as f32;
            *b = (y * cos + x * sin) as f32;
        }
    }
}

/// The topic of every passage, and every topic's direction.
struct Topics {
    random: Random,
    directions: Vec<Vec<f32>>,
}

impl Topics {
    fn new(random: Random, count: usize, layout: Layout) -> Self {
        let pairs = layout.everywhere() - layout.topics;
        let directions = (0..count.max(1))
            .map(|topic| {
                let mut source = random.child(Stream::Direction, topic as u64);
                let mut direction: Vec<f32> = (0..2 * pairs).map(|_| source.normal()).collect();
                let norm = direction
                    .iter()
                    .map(|x| x * x)
                    .sum::<f32>()
                    .sqrt()
                    .max(1e-6);
                direction.iter_mut().for_each(|x| *x /= norm);
                direction
            })
            .collect();
        Topics { random, directions }
    }

    fn at(&self, position: i64) -> usize {
        let passage = position.div_euclid(PASSAGE_TOKENS as i64);
        let mut source = self.random.child(Stream::Passage, passage as u64);
        (source.bits() % self.directions.len() as u64) as usize
    }

    fn add(&self, layout: Layout, position: i64, amplitude: f32, row: &mut [f32]) {
        let (first, second) =
            self.directions[self.at(position)].split_at(layout.everywhere() - layout.topics);
        let pairs = layout.topics..layout.everywhere();
        for ((pair, x), y) in pairs.zip(first).zip(second) {
            row[pair] += amplitude * x;
            row[pair + layout.pairs] += amplitude * y;
        }
    }
}

/// Keys and values of one head.
struct Keys<'a> {
    recipe: &'a Synthetic,
    layout: Layout,
    topics: &'a Topics,
    random: Random,
    frequencies: Vec<f64>,
}

impl<'a> Keys<'a> {
    fn new(
        recipe: &'a Synthetic,
        layout: Layout,
        batch: usize,
        head: usize,
        topics: &'a Topics,
    ) -> Self {
        Keys {
            recipe,
            layout,
            topics,
            random: Random::new(
                recipe.seed,
                &[Stream::Key as u64, batch as u64, head as u64],
            ),
            frequencies: (0..layout.pairs)
                .map(|pair| layout.frequency(pair))
                .collect(),
        }
    }

    fn key(&self, position: usize, row: &mut [f32]) {
        let (layout, structure) = (self.layout, &self.recipe.structure);
        let mut source = self.random.child(Stream::Key, position as u64);
        source.fill(row, layout.noise(structure.noise));
        for x in &mut row[..layout.topics] {
            *x += layout.position_amplitude(structure);
        }
        let topic = layout.amplitude(structure.topic);
        self.topics.add(layout, position as i64, topic, row);
        let strongest = structure.strongest_salience();
        row[layout.everywhere()] +=
            layout.amplitude(strongest) * self.salience(position) / strongest;
        layout.rotate(row, &self.frequencies, position as i64);
    }

    /// Nats that every query gives the key for being a sink or a stripe.
    fn salience(&self, position: usize) -> f32 {
        let structure = &self.recipe.structure;
        if let Some(share) = SINKS.get(position) {
            return share * structure.sink;
        }
        let mut source = self.random.child(Stream::Stripe, position as u64);
        if source.unit() * 1000.0 < structure.stripes_per_1000 {
            return structure.stripe * (0.5 + 0.5 * source.unit());
        }
        0.0
    }

    fn value(&self, position: usize, row: &mut [f32]) {
        let mut source = self.random.child(Stream::Value, position as u64);
        source.fill(row, 0.5);
        self.topics.add(self.layout, position as i64, 4.0, row);
    }
}

/// Queries of one head.
struct Queries<'a> {
    recipe: &'a Synthetic,
    layout: Layout,
    topics: &'a Topics,
    random: Random,
    frequencies: Vec<f64>,
    /// Position's part of every query, before rotation: local decay and slashes.
    towards: Vec<f32>,
    salience: f32,
    topic: f32,
}

impl<'a> Queries<'a> {
    fn new(
        recipe: &'a Synthetic,
        layout: Layout,
        batch: usize,
        head: usize,
        topics: &'a Topics,
    ) -> Self {
        let structure = &recipe.structure;
        let random = Random::new(
            recipe.seed,
            &[Stream::Query as u64, batch as u64, head as u64],
        );
        let frequencies: Vec<f64> = (0..layout.pairs)
            .map(|pair| layout.frequency(pair))
            .collect();
        let mut source = random.child(Stream::Head, 0);
        let mut jitter = || 0.85 + 0.3 * source.unit();
        let (salience, topic) = (jitter(), jitter());
        // A key that stands `distance` before the query is met by turning the query's vector back by as much.
        let mut towards = vec![0.0; recipe.problem.head_dim];
        let longest = recipe.problem.k_len / 2;
        let slashes = (0..structure.slashes).map(|slash| {
            let mut source = random.child(Stream::Slash, slash as u64);
            let distance = 1 + source.bits() as usize % longest.max(1);
            (distance as i64, structure.slash)
        });
        for (distance, nats) in std::iter::once((0, structure.local * jitter())).chain(slashes) {
            let strongest = structure.local.max(structure.slash).max(f32::MIN_POSITIVE);
            let each = layout.position_amplitude(structure) * nats / strongest;
            let mut part = vec![0.0; towards.len()];
            part[..layout.topics].fill(each);
            layout.rotate(&mut part, &frequencies, -distance);
            for (towards, part) in towards.iter_mut().zip(part) {
                *towards += part;
            }
        }
        Queries {
            recipe,
            layout,
            topics,
            random,
            frequencies,
            towards,
            salience: layout.amplitude(structure.strongest_salience()) * salience,
            topic,
        }
    }

    fn query(&self, position: i64, row: &mut [f32]) {
        let (layout, structure) = (self.layout, &self.recipe.structure);
        let mut source = self.random.child(Stream::Query, position as u64);
        source.fill(row, layout.noise(structure.noise));
        for (x, towards) in row.iter_mut().zip(&self.towards) {
            *x += towards;
        }
        let topic = layout.amplitude(structure.topic) * self.topic;
        self.topics.add(layout, position, topic, row);
        // Some queries fall back to the sinks more than others.
        let fall_back = 0.9 + 0.2 * source.unit();
        row[layout.everywhere()] += self.salience * fall_back;
        layout.rotate(row, &self.frequencies, position);
    }
}

/// What a stream of random numbers is for, so that no two draw the same.
#[derive(Clone, Copy)]
enum Stream {
    Sequence = 1,
    Direction,
    Passage,
    Key,
    Stripe,
    Value,
    Query,
    Head,
    Slash,
}

/// SplitMix64: a counter, mixed.
#[derive(Clone, Copy)]
struct Random(u64);

impl Random {
    fn new(seed: u64, path: &[u64]) -> Self {
        path.iter().fold(Random(mix(seed)), |random, &step| {
            Random(mix(random.0 ^ mix(step)))
        })
    }

    /// The stream of one thing among many, whatever was drawn before.
    fn child(self, stream: Stream, index: u64) -> Self {
        Random(mix(self.0 ^ mix(index ^ (stream as u64) << 56)))
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform in [0, 1).
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Nearly normal, mean 0 and deviation 1: the sum of four uniform 16-bit numbers, so never beyond ±3.5.
    fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xffff).sum();
        // Four times the variance of 0..2^16 is 2^32 / 3.
        (sum as f32 - 131_070.0) / (65_536.0 / 1.732_050_8)
    }

    fn fill(&mut self, row: &mut [f32], deviation: f32) {
        for x in row {
            *x = deviation * self.normal();
        }
    }
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
