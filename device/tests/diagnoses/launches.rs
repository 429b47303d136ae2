//! Launches and their ends.

use super::*;

#[test]
fn a_trap_ends_the_launch() {
    assert_fault(
        32,
        Mode::Fast,
        FaultKind::Trap,
        &["trap", "thread 5 "],
        |_| {
            if gpu::tid_x() == 5 {
                gpu::trap();
            }
        },
    );
}

#[test]
fn a_panic_is_a_fault_with_its_text() {
    let words = ["the kernel panicked: index out of bounds: the len is 31 but the index is 31"];
    assert_fault(32, Mode::Fast, FaultKind::Panic, &words, |_| {
        let index = gpu::laneid() as usize;
        assert!([0; 31][index] < 9);
        gpu::bar_sync(0);
    });
}

#[test]
fn too_many_threads_are_refused() {
    let fault = run(1025, Mode::Fast, |_| {}).0.expect_err("a fault");
    assert_eq!(fault.kind(), FaultKind::Launch);
    assert!(
        fault
            .to_string()
            .contains("has 1025 threads; it may have 1 to 1024")
    );
}

#[test]
fn a_device_works_on_after_a_fault() {
    let mut device = Gpu::new();
    let y = device.alloc::<u32>("y", 64);
    let params = Params {
        x: Global::NULL,
        y: y.address(),
    };
    let shape = Launch::new([1, 1, 1], [64, 1, 1]);
    let faulty = Kernel::new("faulty", |p: &Params| gpu::st_global(p.x, 1));
    let good = Kernel::new("good", |p: &Params| {
        gpu::bar_sync(0);
        gpu::st_global(p.y.add(gpu::tid_x().into()), 5);
    });
    assert!(device.launch(faulty, &shape, &params).is_err());
    device.launch(good, &shape, &params).expect("no fault");
    assert_eq!(device.read(&y), [5; 64]);
}

#[test]
#[should_panic(expected = "only inside a kernel that the emulator launched")]
fn intrinsics_outside_a_launch_panic() {
    gpu::bar_sync(0);
}

#[test]
fn too_much_shared_memory_is_refused() {
    let shape = Launch::new([1, 1, 1], [32, 1, 1]).shared_bytes(227 * 1024 + 1);
    let fault = Gpu::new()
        .launch(Kernel::new("faulty", |&()| {}), &shape, &())
        .expect_err("a fault");
    assert_eq!(fault.kind(), FaultKind::Launch);
    assert!(
        fault
            .to_string()
            .contains("232449 bytes of shared memory; a CTA may have 232448")
    );
}

#[test]
fn blocks_in_parallel_share_global_memory() {
    let mut device = Gpu::new();
    let sums = device.upload("sums", &[0u32; 4]);
    let kernel = Kernel::new("sum", |sums: &Global<u32>| {
        gpu::bar_sync(0);
        gpu::atom_global_add_u32(sums.add((gpu::ctaid_x() % 4).into()), gpu::ctaid_x());
    });
    let shape = Launch::new([1000, 1, 1], [64, 1, 1]);
    device
        .launch(kernel, &shape, &sums.address())
        .expect("no fault");
    let want = |rest: u32| (0..1000).filter(|n| n % 4 == rest).sum::<u32>() * 64;
    assert_eq!(device.read(&sums), [want(0), want(1), want(2), want(3)]);
}
