//! The `mgit` command.

fn main() -> std::process::ExitCode {
    mgit::cli::main()
}
