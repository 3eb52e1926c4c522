//! What the compiler says a kernel uses: ptxas's report, as `--ptxas-options=-v` puts it into the log.

/// What one kernel uses on one architecture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub kernel: String,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes of local memory a thread: spilled registers, and arrays indexed at run time.
    pub stack_bytes: u32,
    /// Bytes of registers stored to local memory and loaded from it, together.
    pub spilled_bytes: u32,
}

/// The kernels of a log, in its order. Lines that are not understood are passed over.
pub fn usages(log: &str) -> Vec<Usage> {
    let mut usages: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            usages.push(Usage { kernel, ..Usage::default() });
        }
        let Some(usage) = usages.last_mut() else { continue };
        let number = |before: &str| number_before(line, before);
        if let (Some(stack), Some(stores), Some(loads)) =
            (number("bytes stack frame"), number("bytes spill stores"), number("bytes spill loads"))
        {
            (usage.stack_bytes, usage.spilled_bytes) = (stack, stores + loads);
        }
        if let Some(registers) = number("registers") {
            usage.registers = registers;
        }
    }
    usages
}

/// Lines in which the compiler says that it did not do as it was told for speed: that it orders wgmma one after the other, or
/// leaves setmaxnreg out.
pub fn losses(log: &str) -> impl Iterator<Item = &str> {
    log.lines().filter(|line| line.contains("Potential Performance Loss"))
}

/// The number that stands right before these words.
fn number_before(line: &str, words: &str) -> Option<u32> {
    let before = line[..line.find(words)?].trim_end();
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_and_spills_are_found() {
        let log = "ptxas info    : 8 bytes gmem, 16 bytes cmem[4]\n\
                   ptxas info    : Compiling entry function 'gelu' for 'sm_80'\n\
                   ptxas info    : Function properties for gelu\n\
                   ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                   ptxas info    : Used 13 registers, used 0 barriers, 384 bytes cmem[0]\n\
                   ptxas info    : Compiling entry function 'matmul' for 'sm_80'\n\
                   ptxas         .     24 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads\n\
                   ptxas info    : Used 255 registers, used 1 barriers\n";
        let gelu = Usage { kernel: "gelu".into(), registers: 13, ..Usage::default() };
        let matmul = Usage { kernel: "matmul".into(), registers: 255, stack_bytes: 24, spilled_bytes: 24 };
        assert_eq!(usages(log), [gelu, matmul]);
        assert_eq!(usages("nothing of the kind"), []);
    }

    #[test]
    fn what_the_compiler_left_undone_is_found() {
        let log = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
                   insufficient register resources for the wgmma pipeline in the function 'matmul'\n\
                   ptxas info    : Used 168 registers, used 16 barriers";
        assert_eq!(losses(log).collect::<Vec<_>>(), log.lines().take(1).collect::<Vec<_>>());
    }
}
