package @ID@;

import java.util.Collections;
import java.util.List;

/** What came of running the golden vectors on one accelerator. */
public final class SelfTestReport {
    public final Accelerator accelerator;
    public final List<Case> cases;

    SelfTestReport(Accelerator accelerator, List<Case> cases) {
        this.accelerator = accelerator;
        this.cases = Collections.unmodifiableList(cases);
    }

    /** Whether every case passed. */
    public boolean passed() {
        for (Case c : cases) {
            if (!c.passed()) {
                return false;
            }
        }
        return true;
    }

    @Override
    public String toString() {
        StringBuilder text = new StringBuilder(accelerator + (passed() ? " passed" : " failed"));
        for (Case c : cases) {
            text.append("\n  ").append(c);
        }
        return text.toString();
    }

    /** One golden vector: the largest difference as a part of the largest expected value, and its limit. */
    public static final class Case {
        public final String name;
        public final double error;
        public final double limit;
        /** What is wrong; empty where nothing is. */
        public final String message;

        Case(String name, double error, double limit, String message) {
            this.name = name;
            this.error = error;
            this.limit = limit;
            this.message = message;
        }

        public boolean passed() {
            return message.isEmpty();
        }

        @Override
        public String toString() {
            return name + ": " + (passed() ? "off by " + error + ", allowed " + limit : message);
        }
    }
}
