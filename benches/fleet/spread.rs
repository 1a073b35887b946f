//! Figures of several rounds.

/// Figures, in the order in which they were measured.
#[derive(Clone, Default)]
pub struct Spread(Vec<f64>);

impl FromIterator<f64> for Spread {
    fn from_iter<I: IntoIterator<Item = f64>>(figures: I) -> Self {
        Self(figures.into_iter().collect())
    }
}

impl Spread {
    pub fn add(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The figure that so many of a hundred don't exceed.
    pub fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
    }

    pub fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// Median, least and greatest.
    pub fn show(&self, unit: &str) -> String {
        let shown = |figure: f64| if figure < 100.0 { format!("{figure:.2}") } else { format!("{figure:.0}") };
        format!("{} {unit} ({}–{})", shown(self.median()), shown(self.percentile(0)), shown(self.percentile(100)))
    }
}
