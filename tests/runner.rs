//! The runner itself: a backend that is slightly wrong must not pass.

use std::panic::{AssertUnwindSafe, catch_unwind};

use sample_attention::{
    Budget, Dtype, Fallback, Inputs, Outputs, Policy, Problem, Result, Selection,
};
use testkit::runner::{Attend, Backend, Case, Cpu, Data, Found, Outcome, check, check_long};

/// What is wrong with the CPU backend.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Scores off by 2e-5, relative: what a forgotten rounding of the scale to 16 bits is not even near.
    Scale,
    /// LSE off by 1e-4.
    Lse,
    /// One LSE never written.
    Unwritten,
    /// Attends to one key more than it tells.
    ExtraKey,
    /// Attends to one block less than it tells.
    MissingBlock,
    /// Selects for a higher coverage than asked for.
    TooMuch,
    /// Selects for a lower one.
    TooLittle,
    /// Samples other rows.
    OtherRows,
    /// Keeps a smaller window.
    SmallWindow,
    /// Keeps one sink less.
    FewSinks,
    /// Reports a density that is off by 1e-6.
    Density,
    /// Reports full coverage.
    SampledCoverage,
    /// Reports a true coverage that is off by a thousandth.
    TrueCoverage,
}

struct Wrong(Fault);

impl Wrong {
    /// What it does instead of what it was asked for.
    fn instead(&self, problem: &mut Problem, policy: &mut Policy) {
        // One head has few rows, of which single ones decide.
        let coverage_fault = if policy.budget == Budget::Rows {
            0.3
        } else {
            0.02
        };
        match self.0 {
            Fault::Scale => problem.softmax_scale *= 1.000_02,
            Fault::TooMuch => policy.coverage += coverage_fault,
            Fault::TooLittle => policy.coverage -= coverage_fault,
            Fault::OtherRows => policy.row_stride += 1,
            Fault::SmallWindow => policy.window = sample_attention::Window::Tokens(128),
            Fault::FewSinks => policy.sinks -= 1,
            _ => {}
        }
    }
}

fn with_one_key_more(selection: &Selection) -> Selection {
    let mut selection = selection.clone();
    let lists = selection.head(0, 0);
    let mut stripes = lists.stripes().to_vec();
    // A key of the second block that rows of the last block do not keep yet.
    let key = (128..256)
        .find(|&key| !lists.keeps(899, key))
        .expect("sparse") as u32;
    stripes.push(key);
    stripes.sort_unstable();
    selection.set_stripes(0, 0, &stripes).unwrap();
    selection
}

fn with_one_block_less(selection: &Selection) -> Selection {
    let mut selection = selection.clone();
    let mut blocks: Vec<usize> = selection.head(0, 0).blocks(7).collect();
    blocks.remove(0);
    selection.set_blocks(0, 0, 7, &blocks).unwrap();
    selection
}

impl Backend for Wrong {
    fn name(&self) -> String {
        format!("{:?}", self.0)
    }

    fn keeps_f32(&self) -> bool {
        true
    }

    fn run(
        &self,
        problem: &Problem,
        attend: &Attend,
        inputs: &Inputs<'_>,
        outputs: Outputs<'_>,
    ) -> Result<Found> {
        let cpu = Cpu {
            coverage: true,
            ..Cpu::default()
        };
        let (mut problem, attend) = (*problem, attend.clone());
        let Attend::Policy(mut policy) = attend else {
            panic!("cases of this test select")
        };
        self.instead(&mut problem, &mut policy);
        let Outputs {
            o, lse: Some(lse), ..
        } = outputs
        else {
            panic!("LSE is wanted")
        };
        let unwritten = lse[0];
        let mut found = if matches!(self.0, Fault::ExtraKey | Fault::MissingBlock) {
            // What was selected, told before it is changed.
            let [q, k] =
                [problem.q_shape(), problem.kv_shape()].map(|shape| shape.iter().product());
            assert_eq!((q, k), (900 * 16, 900 * 16), "one head");
            let mut scratch = vec![0f32; q];
            let outputs = Outputs::new(sample_attention::TensorViewMut::bhsd(
                &mut scratch,
                problem.q_shape(),
            )?)
            .with_lse(&mut *lse);
            let found = cpu.run(&problem, &Attend::Policy(policy), inputs, outputs)?;
            let selection = found.selection.as_ref().expect("it selects");
            let changed = match self.0 {
                Fault::ExtraKey => with_one_key_more(selection),
                _ => with_one_block_less(selection),
            };
            let outputs = Outputs::new(o).with_lse(&mut *lse);
            cpu.run(&problem, &Attend::Own(changed), inputs, outputs)?;
            found
        } else {
            let outputs = Outputs::new(o).with_lse(&mut *lse);
            cpu.run(&problem, &Attend::Policy(policy), inputs, outputs)?
        };
        let report = found.report.as_mut().expect("the CPU reports");
        let coverage = found.coverage.as_mut().expect("asked for");
        match self.0 {
            Fault::Lse => lse[500] += 1e-4,
            Fault::Unwritten => lse[500] = unwritten,
            Fault::Density => report.heads[0].density += 1e-6,
            Fault::SampledCoverage => report.heads[0].sampled_coverage = Some(1.0),
            Fault::TrueCoverage => coverage[0].mean -= 1e-3,
            _ => {}
        }
        Ok(found)
    }
}

/// What the runner says against a fault; `None` where it passes.
fn complaint(fault: Fault, budget: Budget) -> Option<String> {
    complaint_of(check, fault, budget)
}

fn complaint_of(
    check: fn(&dyn Backend, &Case) -> Outcome,
    fault: Fault,
    budget: Budget,
) -> Option<String> {
    let coverage = if budget == Budget::Rows { 0.6 } else { 0.9 };
    let policy = Policy::of(Budget::Blocks)
        .with_budget(budget)
        .with_coverage(coverage)
        .with_fallback(Fallback::Never);
    let problem = Problem::causal(900, 16, Dtype::F32);
    let case = Case {
        data: Data::Structured,
        ..Case::new(problem, Attend::Policy(policy))
    };
    let panic = catch_unwind(AssertUnwindSafe(|| check(&Wrong(fault), &case))).err()?;
    Some(
        *panic
            .downcast::<String>()
            .expect("panics with a formatted text"),
    )
}

#[test]
fn a_backend_without_a_fault_passes() {
    for budget in [
        Budget::Rows,
        Budget::Blocks,
        Budget::Residual,
        Budget::Paper,
    ] {
        assert_eq!(complaint(Fault::None, budget), None);
    }
}

#[test]
fn every_fault_is_found_and_named() {
    let both = [Budget::Blocks, Budget::Residual];
    let blocks = [Budget::Blocks; 2];
    for (fault, budgets, words) in [
        (Fault::Scale, both, "normaliser of SampledRow"),
        (Fault::Lse, both, "lse at [0, 0, 500]"),
        (
            Fault::Unwritten,
            both,
            "lse: the element at offset 500 was left unwritten",
        ),
        (Fault::ExtraKey, both, " at [0, 0, "),
        (Fault::MissingBlock, blocks, " at [0, 0, 8"),
        (Fault::TooMuch, both, "need of unit"),
        (Fault::TooLittle, both, "need of unit"),
        (Fault::OtherRows, both, "sampled rows of head 0"),
        (Fault::SmallWindow, both, "mass of candidate"),
        (Fault::FewSinks, both, "mass of candidate"),
        (Fault::Density, both, "density of head 0"),
        (Fault::SampledCoverage, both, "sampled coverage of head 0"),
        (Fault::TrueCoverage, both, "true coverage of head 0"),
    ] {
        for budget in budgets {
            let complaint = complaint(fault, budget);
            let complaint = complaint.unwrap_or_else(|| panic!("{fault:?} passes with {budget:?}"));
            assert!(
                complaint.contains(words),
                "{fault:?} with {budget:?}: {complaint}"
            );
        }
    }
}

#[test]
fn every_fault_of_a_selection_by_rows_is_found_by_the_oracles_masses_alone() {
    for (fault, words) in [
        (Fault::Scale, "normaliser of SampledRow"),
        (Fault::ExtraKey, " at [0, 0, "),
        (Fault::MissingBlock, " at [0, 0, 8"),
        (Fault::TooMuch, "no row of query block"),
        (Fault::TooLittle, "lacks key block"),
        (Fault::OtherRows, "sampled rows of head 0"),
        (Fault::SmallWindow, "window and sinks"),
        (Fault::FewSinks, "window and sinks"),
        (Fault::Density, "density of head 0"),
        (Fault::SampledCoverage, "sampled coverage of head 0"),
        (Fault::TrueCoverage, "true coverage of head 0"),
    ] {
        let complaint = complaint(fault, Budget::Rows);
        let complaint = complaint.unwrap_or_else(|| panic!("{fault:?} passes"));
        assert!(complaint.contains(words), "{fault:?}: {complaint}");
    }
}

#[test]
fn the_checks_of_long_sequences_find_what_the_oracle_need_not_know() {
    let check: fn(&dyn Backend, &Case) -> Outcome =
        |backend, case| check_long(backend, case, &case.inputs());
    assert_eq!(complaint_of(check, Fault::None, Budget::Paper), None);
    for budget in [Budget::Blocks, Budget::Residual] {
        assert_eq!(complaint_of(check, Fault::None, budget), None);
        for (fault, words) in [
            (Fault::Scale, "normaliser of SampledRow"),
            (Fault::Lse, "lse at [0, 0, 500]"),
            (Fault::ExtraKey, " at [0, 0, "),
            (Fault::TooMuch, "the need of unit"),
            (Fault::TooLittle, "the need of unit"),
            (Fault::OtherRows, "sampled rows of head 0"),
        ] {
            let complaint = complaint_of(check, fault, budget);
            let complaint = complaint.unwrap_or_else(|| panic!("{fault:?} passes with {budget:?}"));
            assert!(
                complaint.contains(words),
                "{fault:?} with {budget:?}: {complaint}"
            );
        }
    }
}
