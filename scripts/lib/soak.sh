# shellcheck shell=bash
# What `scripts/test --soak` runs beside every other test: long, and with figures. Sourced by scripts/test, whose functions it uses.

# Jobs of the soak on fakes, and backups of the one on real parts.
soak_jobs=${LONGSHORE_SOAK_JOBS:-2000}
soak_backups=${LONGSHORE_SOAK_BACKUPS:-100}

# soak_on_fakes: in the laboratory or without one. LONGSHORE_SOAK_SEED, which each run prints, has the same wanted and go wrong once more.
soak_on_fakes() {
    stage "soak on fakes" env LONGSHORE_SOAK_JOBS="$soak_jobs" \
        cargo test --locked --test worker -- --nocapture soak::jobs_under_faults_that_nobody_chose
}

# soak_on_real_parts: alone in the laboratory, so that what grows is the soak's
soak_on_real_parts() {
    stage "soak on real parts" env LONGSHORE_SOAK_BACKUPS="$soak_backups" \
        cargo test --locked --test live_soak -- --nocapture --test-threads 1
}

# soak_speed: how soon a worker goes on with what a dead one left; scripts/bench measures the dead letters
soak_speed() {
    stage "speed of recovery" cargo bench --locked --bench recovery
}

soak() {
    soak_on_fakes
    soak_on_real_parts
    soak_speed
}
