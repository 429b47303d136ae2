//! `wgmma`: products of a warpgroup, executed when they are waited for.
//!
//! From issue until the wait, accumulators hold a NaN that names the product in its payload: the
//! poison that a kernel reads too early is also how the wait finds what to deliver. So values may
//! move between registers (here: memory) in between.

use std::panic::Location;

use super::collective::{ALL_LANES, Lanes, Op, Then, collective};
use super::descriptor::Matrix;
use super::state::half::Half;
use super::state::queue::pop_front_if;
pub(in super::super) use super::state::wgmma::Operand;
use super::state::wgmma::{Pending, Tile};
use super::state::{At, Cta, FaultKind, State};
use crate::gpu::fragment::WgmmaM64K16;

/// Quiet NaNs with this prefix and a nonzero payload mark accumulators in flight.
const IN_FLIGHT: u32 = 0xffc0_0000;

const THREADS: usize = 128;
const ROWS: usize = 64;

fn token_of(value: f32) -> Option<u32> {
    let token = value.to_bits() ^ IN_FLIGHT;
    // All ones is uninitialised memory, no token.
    (1..1 << 21).contains(&token).then_some(token)
}

/// Where A comes from.
#[derive(Clone, Copy)]
pub(in super::super) enum Left<'a> {
    Shared(Operand),
    /// Four registers a k-step.
    Registers(&'a [[u32; 4]]),
}

/// A thread's operands of a product of `steps` k-steps.
#[derive(Clone, Copy)]
pub(in super::super) struct Product<'a> {
    pub(in super::super) op: &'static str,
    pub(in super::super) format: Half,
    pub(in super::super) a: Left<'a>,
    pub(in super::super) b: Operand,
    pub(in super::super) steps: usize,
    /// Whether the accumulators start at zero.
    pub(in super::super) zero: bool,
}

struct Arguments<'a> {
    product: Product<'a>,
    accumulators: *mut [f32],
}

/// Issues `fence`, the product and `commit_group`. The accumulators are poisoned.
#[track_caller]
pub(in super::super) fn multiply(product: Product<'_>, accumulators: &mut [f32]) {
    let at = Location::caller();
    let op = product.op;
    let mut arguments = Arguments {
        product,
        accumulators,
    };
    collective(Op::aligned(op), at, &mut arguments, |cta, lanes| {
        cta.warp_issues(op, lanes, at)
    });
}

/// Waits until at most `pending` groups of the warpgroup are in flight, and delivers these
/// accumulators if theirs are done.
#[track_caller]
pub(in super::super) fn wait_group(pending: u32, accumulators: &mut [f32]) {
    let op = "wgmma.wait_group";
    let at = Location::caller();
    let mut slot: *mut [f32] = accumulators;
    let op = Op::aligned(op).operand(pending.into());
    collective(op, at, &mut slot, |cta, lanes| {
        cta.need_warpgroup(op.name, lanes.mask, at);
        cta.execute_groups(pending);
        for lane in lanes.lanes() {
            // SAFETY: the lane waits in `collective`, its accumulators borrowed until it returns.
            let accumulators = unsafe { &mut **lanes.get(lane) };
            cta.deliver(lane, accumulators);
        }
        Then::GoOn
    });
}

#[track_caller]
pub(in super::super) fn set_max_registers(op: &'static str, count: u32) {
    let at = Location::caller();
    let aligned = Op::aligned(op).operand(count.into());
    collective(aligned, at, &mut (), |cta, lanes| {
        cta.need_warpgroup(op, lanes.mask, at);
        if !(24..=256).contains(&count) || !count.is_multiple_of(8) {
            cta.fail(
                FaultKind::Registers,
                at,
                format!("`{op}` to {count} registers; it takes a multiple of 8 from 24 to 256"),
            );
        }
        Then::GoOn
    });
}

impl Cta {
    fn need_warpgroup(&mut self, op: &'static str, mask: u32, at: At) {
        let group = (self.warp() / 4) as usize;
        if mask != ALL_LANES || group >= self.warpgroups.len() {
            self.fail(
                FaultKind::Divergence,
                at,
                format!(
                    "`{op}` needs a warpgroup: four whole warps, the first a multiple of four. This CTA has {} \
                     threads",
                    self.threads.len()
                ),
            );
        }
    }

    /// The whole warp is at a product; the last of four warps issues it.
    fn warp_issues(&mut self, op: &'static str, lanes: Lanes<'_, Arguments<'_>>, at: At) -> Then {
        self.need_warpgroup(op, lanes.mask, at);
        let warp = self.warp();
        let group = (warp / 4) as usize;
        let arrivals = &mut self.warpgroups[group].arrivals;
        if let Some(&(other, other_at, _)) = arrivals.first()
            && other_at != at
        {
            self.fail(
                FaultKind::Divergence,
                at,
                format!(
                    "divergence in warpgroup {group}: this warp is at `{op}`, but warp {other} waits in a wgmma at \
                     {other_at}; the four warps must execute it together"
                ),
            );
        }
        arrivals.push((warp, at, lanes.arguments));
        if arrivals.len() < 4 {
            return Then::Wait(State::Warpgroup { op, at });
        }
        let mut arrivals = std::mem::take(&mut self.warpgroups[group].arrivals);
        arrivals.sort_by_key(|&(warp, ..)| warp);
        let threads: Vec<*mut Arguments<'_>> = arrivals
            .iter()
            .flat_map(|(_, _, arguments)| arguments.iter().map(|argument| argument.cast()))
            .collect();
        self.issue(group, &threads, at);
        for &(other, ..) in arrivals.iter().filter(|&&(other, ..)| other != warp) {
            for lane in 0..32 {
                self.make_ready(other * 32 + lane);
            }
        }
        Then::GoOn
    }

    fn issue(&mut self, group: usize, threads: &[*mut Arguments<'_>], at: At) {
        // SAFETY: every thread of the warpgroup waits in `multiply` with its arguments on its
        // stack, and `at` is the same, so that all are `Arguments`.
        let of = |thread: usize| unsafe { &*threads[thread] };
        let first = of(0).product;
        // SAFETY: as above; the accumulators are borrowed until `multiply` returns.
        let accumulators = |thread: usize| unsafe { &mut *of(thread).accumulators };
        let columns = accumulators(0).len() * 2;
        let token = token_of(accumulators(0)[0]).filter(|_| !first.zero);
        for thread in 1..THREADS {
            let product = of(thread).product;
            let same_a = match (product.a, first.a) {
                (Left::Shared(mine), Left::Shared(theirs)) => mine == theirs,
                (Left::Registers(_), Left::Registers(_)) => true,
                _ => false,
            };
            if product.b != first.b || !same_a {
                self.fail(
                    FaultKind::Divergence,
                    at,
                    format!(
                        "`{}` in warpgroup {group}: thread {} of the group has other matrix descriptors than thread 0",
                        first.op, thread
                    ),
                );
            }
            let mine = token_of(accumulators(thread)[0]).filter(|_| !first.zero);
            if mine != token {
                self.fail(
                    FaultKind::Wgmma,
                    at,
                    format!(
                        "`{}` in warpgroup {group}: thread {thread} of the group has waited for its accumulators and \
                         thread 0 has not, or the other way round",
                        first.op
                    ),
                );
            }
        }
        self.check_operands(group, first, columns, at);
        let warpgroup = &mut self.warpgroups[group];
        let token = match token {
            Some(token)
                if warpgroup
                    .tiles
                    .get(&token)
                    .is_some_and(|tile| tile.columns == columns) =>
            {
                token
            }
            _ => {
                warpgroup.tokens = warpgroup.tokens % ((1 << 21) - 2) + 1;
                let mut values = vec![0.0; ROWS * columns];
                if !first.zero {
                    for thread in 0..THREADS {
                        for (i, &value) in accumulators(thread).iter().enumerate() {
                            let [row, column] = WgmmaM64K16::accumulator(thread as u32, i as u32);
                            values[row * columns + column] = value;
                        }
                    }
                }
                let tile = Tile {
                    columns,
                    values,
                    pending: 0,
                    delivered: 0,
                };
                warpgroup.tiles.insert(warpgroup.tokens, tile);
                warpgroup.tokens
            }
        };
        if let Some(tile) = warpgroup.tiles.get_mut(&token) {
            tile.pending += 1;
        }
        let mut a_registers = Vec::new();
        for thread in 0..THREADS {
            accumulators(thread).fill(f32::from_bits(IN_FLIGHT | token));
            if let Left::Registers(registers) = of(thread).product.a {
                a_registers.extend_from_slice(registers);
            }
        }
        warpgroup.pending.push_back(Pending {
            group: warpgroup.groups,
            token,
            op: first.op,
            at,
            format: first.format,
            a_registers,
            a: match first.a {
                Left::Shared(operand) => Some(operand),
                Left::Registers(_) => None,
            },
            b: first.b,
            steps: first.steps,
        });
        warpgroup.groups += 1;
    }

    /// Checks both descriptors at every k-step, and that nothing races with the reads.
    fn check_operands(&mut self, group: usize, product: Product<'_>, columns: usize, at: At) {
        let op = product.op;
        let a = match product.a {
            Left::Shared(operand) => Some(("A", operand, ROWS as u32)),
            Left::Registers(_) => None,
        };
        for (name, operand, size) in a.into_iter().chain([("B", product.b, columns as u32)]) {
            for step in 0..product.steps {
                let matrix = Matrix::decode(operand, step).unwrap_or_else(|why| {
                    let descriptor = operand.descriptor;
                    self.fail(
                        FaultKind::Wgmma,
                        at,
                        format!("`{op}`: the descriptor of {name}, {descriptor:#018x} at k-step {step}, is malformed: {why}"),
                    )
                });
                for (address, ..) in matrix.chunks(size) {
                    self.shared(address, 16, 16, op, at);
                }
                let ranges = matrix.chunks(size).map(|(address, ..)| (address, 16));
                let number = self.warpgroups[group].groups;
                self.note_wgmma(group as u32, number, ranges, op, at);
            }
        }
    }

    /// Executes what may no longer be in flight.
    fn execute_groups(&mut self, pending: u32) {
        let group = (self.warp() / 4) as usize;
        let done = self.warpgroups[group].groups.saturating_sub(pending);
        while let Some(product) = pop_front_if(&mut self.warpgroups[group].pending, |product| {
            product.group < done
        }) {
            self.execute(group, &product);
        }
        self.note_wgmma_waited(done);
    }

    fn execute(&mut self, group: usize, product: &Pending) {
        let Some(mut tile) = self.warpgroups[group].tiles.remove(&product.token) else {
            unreachable!("a tile lives until its products are delivered")
        };
        let columns = tile.columns;
        let mut a = [[0f32; 16]; ROWS];
        let mut b = vec![0f32; 16 * columns];
        for step in 0..product.steps {
            match product.a {
                Some(operand) => {
                    self.gather(operand, step, ROWS, product, |row, k, value| {
                        a[row][k] = value
                    });
                }
                None => {
                    for thread in 0..THREADS {
                        let registers = product.a_registers[thread * product.steps + step];
                        for i in 0..8 {
                            let [row, k] = WgmmaM64K16::a(thread as u32, i);
                            let bits = registers[i as usize / 2] >> (i % 2 * 16);
                            a[row][k] = product.format.to_f32(bits as u16);
                        }
                    }
                }
            }
            self.gather(product.b, step, columns, product, |column, k, value| {
                b[k * columns + column] = value;
            });
            for (row, c) in a.iter().zip(tile.values.chunks_exact_mut(columns)) {
                for (&a, b) in row.iter().zip(b.chunks_exact(columns)) {
                    for (c, b) in c.iter_mut().zip(b) {
                        *c += a * b;
                    }
                }
            }
        }
        tile.pending -= 1;
        self.warpgroups[group].tiles.insert(product.token, tile);
    }

    /// Reads a 16 × `size` operand of one k-step.
    fn gather(
        &mut self,
        operand: Operand,
        step: usize,
        size: usize,
        product: &Pending,
        mut put: impl FnMut(usize, usize, f32),
    ) {
        let Ok(matrix) = Matrix::decode(operand, step) else {
            unreachable!("descriptors are checked when a product is issued")
        };
        for (address, outer, inner) in matrix.chunks(size as u32) {
            let host = self.shared(address, 16, 16, product.op, product.at);
            // SAFETY: `shared` checked 16 aligned bytes.
            let elements = unsafe { host.cast::<[u16; 8]>().read() };
            for (i, bits) in elements.into_iter().enumerate() {
                let (along, across) = (inner as usize * 8 + i, outer as usize);
                let value = product.format.to_f32(bits);
                if matrix.mn_major {
                    put(along, across, value);
                } else {
                    put(across, along, value);
                }
            }
        }
    }

    /// Hands lane `lane` of the running warp its part of a tile that is done.
    fn deliver(&mut self, lane: u32, accumulators: &mut [f32]) {
        let warp = self.warp();
        let Some(token) = accumulators.first().copied().and_then(token_of) else {
            return;
        };
        let tiles = &mut self.warpgroups[(warp / 4) as usize].tiles;
        let Some(tile) = tiles
            .get_mut(&token)
            .filter(|tile| tile.pending == 0 && tile.columns == 2 * accumulators.len())
        else {
            return;
        };
        for (i, value) in accumulators.iter_mut().enumerate() {
            let [row, column] = WgmmaM64K16::accumulator(warp % 4 * 32 + lane, i as u32);
            *value = tile.values[row * tile.columns + column];
        }
        tile.delivered += 1;
        if tile.delivered == THREADS {
            tiles.remove(&token);
        }
    }

    /// The running thread exits: its warpgroup may have no product in flight.
    pub(super) fn warp_exits_in_flight(&mut self) {
        let group = (self.warp() / 4) as usize;
        let Some(product) = self
            .warpgroups
            .get(group)
            .and_then(|group| group.pending.front())
        else {
            return;
        };
        let (op, at) = (product.op, product.at);
        self.fail(
            FaultKind::Wgmma,
            at,
            format!("this thread exited the kernel without waiting for `{op}`, issued here"),
        );
    }
}
