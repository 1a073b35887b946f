//! Collecting findings without end in bounded memory: every one is counted, and of each severity the first ones are kept.

use super::{Finding, Severity};

/// Findings of one validation.
#[derive(Clone, Debug)]
pub struct Findings {
    kept_max: usize,
    errors: Kept,
    warnings: Kept,
    notes: Kept,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    first: Vec<Finding>,
    count: u64,
}

impl Findings {
    /// With room for so many.
    pub fn new(kept_max: usize) -> Self {
        Self { kept_max, errors: Kept::default(), warnings: Kept::default(), notes: Kept::default() }
    }

    /// Adds one.
    pub fn add(&mut self, finding: Finding) {
        let kept_max = self.kept_max;
        let kept = match finding.severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
            Severity::Note => &mut self.notes,
        };
        kept.count += 1;
        if kept.first.len() < kept_max {
            kept.first.push(finding);
        }
    }

    /// How many there are of that severity, also those that were not kept.
    pub fn count(&self, severity: Severity) -> u64 {
        match severity {
            Severity::Error => self.errors.count,
            Severity::Warning => self.warnings.count,
            Severity::Note => self.notes.count,
        }
    }

    /// What there was room for: the worst first, in the order in which they were found.
    pub fn into_worst_first(self) -> Vec<Finding> {
        let mut all = self.errors.first;
        all.extend(self.warnings.first);
        all.extend(self.notes.first);
        all.truncate(self.kept_max);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FindingCode, ROOT};
    use super::*;

    #[test]
    fn however_much_is_found_the_worst_is_kept_and_all_is_counted() {
        let mut findings = Findings::new(3);
        for number in 0..100_000 {
            findings.add(Finding::new(FindingCode::ForeignFile, ROOT, format!("{number}")));
        }
        findings.add(Finding::new(FindingCode::FileMissing, ROOT, ""));
        assert_eq!((findings.count(Severity::Error), findings.count(Severity::Warning)), (1, 100_000));
        let kept = findings.into_worst_first();
        let texts: Vec<_> = kept.iter().map(|finding| finding.text.as_str()).collect();
        assert_eq!(texts, ["", "0", "1"]);
    }
}
