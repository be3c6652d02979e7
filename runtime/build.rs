//! Says which kernels the target has, where the compiler does not: stable rustc shows no `target_feature` for the extensions of Cortex-M.

use std::env;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(pith_helium, pith_dsp, pith_v6m, pith_v7m, pith_riscv, pith_desktop)");
    let target = env::var("TARGET").unwrap_or_default();
    let feature = |name: &str| env::var_os(name).is_some();
    let set = match target.split('-').next().unwrap_or_default() {
        "x86_64" | "aarch64" => "pith_desktop",
        "thumbv6m" => "pith_v6m",
        "thumbv7m" => "pith_v7m",
        "thumbv7em" => "pith_dsp",
        // Armv8-M cores have their extensions as options, which only the user can know.
        "thumbv8m.main" if feature("CARGO_FEATURE_HELIUM") => "pith_helium",
        "thumbv8m.main" if feature("CARGO_FEATURE_DSP") => "pith_dsp",
        "thumbv8m.main" => "pith_v7m",
        "thumbv8m.base" => "pith_v6m",
        set if set.starts_with("riscv32im") => "pith_riscv",
        _ => return,
    };
    println!("cargo::rustc-cfg={set}");
}
