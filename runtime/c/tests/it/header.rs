//! `include/pith.h` is what cbindgen makes of the code, both C and C++ take it, and the README quotes what is tested.

use super::{call, has, here};
use std::process::Command;

#[test]
fn is_generated() {
    let config = cbindgen::Config::from_file(here("cbindgen.toml")).unwrap();
    let mut written = Vec::new();
    let builder = ["error", "model", "engine"]
        .iter()
        .fold(cbindgen::Builder::new(), |builder, file| builder.with_src(here(&format!("src/{file}.rs"))));
    builder.with_config(config).generate().unwrap().write(&mut written);
    let (written, path) = (String::from_utf8(written).unwrap(), here("include/pith.h"));
    if std::env::var_os("PITH_BLESS").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == written,
        "include/pith.h is not what the code gives; run the tests with PITH_BLESS=1 and commit it"
    );
}

#[test]
fn is_valid_c_and_cpp() {
    for (compiler, args) in [("cc", ["-x", "c", "-std=c99"]), ("c++", ["-x", "c++", "-std=c++11"])] {
        if !has(compiler) {
            println!("skipped: no {compiler}");
            continue;
        }
        let strict = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"];
        call(
            Command::new(compiler).args(args).args(strict).arg("-include").arg(here("include/pith.h")).arg("/dev/null"),
        );
    }
}

#[test]
fn readme_quotes_the_examples() {
    let text = |path: &str| std::fs::read_to_string(here(path)).unwrap();
    let lines = |text: &str| text.lines().map(|line| line.trim().to_owned() + "\n").collect::<String>();
    let examples = lines(&text("examples/cortex-m/main.c")) + &lines(&text("examples/desktop/CMakeLists.txt"));
    let readme = text("README.md");
    let quotes = readme.split("```").skip(1).step_by(2);
    let quotes: Vec<String> = quotes.map(|quote| lines(quote.split_once('\n').unwrap().1)).collect();
    assert_eq!(quotes.len(), 2);
    quotes.iter().for_each(|quote| assert!(examples.contains(quote), "no example has\n{quote}"));
}
